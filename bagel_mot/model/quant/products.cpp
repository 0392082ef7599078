// Products of a few rows of activations with quantised matrices as they are stored: INT8 and FP8 (`rows.py`), NF4
// (`nf4.py`) and INT4 (`int4.py`). A small part of the matrix at a time is dequantised to float32, in the processor's
// nearest cache, and multiplied with all rows; sums are float32. What a row gives does not depend on the others.
//
// Compiled on the user's machine with the other passes (`bagel_mot/model/passes.py`).

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../lanes.h"

namespace {

inline float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Adds the products of `size` weights with N rows of activations, `stride` apart, to `sums`.
template <int N>
inline void add_products(const float* weights, const float* x, int64_t stride, int64_t size, float* sums) {
    Lanes even[N] = {}, odd[N] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= size; i += 2 * LANES) {
        Lanes first = lanes(weights + i), second = lanes(weights + i + LANES);
        for (int n = 0; n < N; ++n) {
            even[n] += first * lanes(x + n * stride + i);
            odd[n] += second * lanes(x + n * stride + i + LANES);
        }
    }
    for (int n = 0; n < N; ++n) {
        Lanes both = even[n] + odd[n];
        float sum = 0.0f;
        for (int64_t lane = 0; lane < LANES; ++lane) sum += both[lane];
        for (int64_t rest = i; rest < size; ++rest) sum += weights[rest] * x[n * stride + rest];
        sums[n] += sum;
    }
}

constexpr int64_t PART = 512;    // weights of a row that are dequantised at a time
constexpr int64_t TOGETHER = 8;  // rows of the matrix that share what is read of the activations

struct Int8 {
    const int8_t* values;
    const float* scales;

    void widen(int64_t row, int64_t start, int64_t size, int64_t inner, float* to) const {
        const int8_t* from = values + row * inner + start;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) to[i] = static_cast<float>(from[i]);
    }

    float scale(int64_t row) const { return scales[row]; }
};

// float8 e4m3: its bits are those of float32 with four bits of the exponent and three of the mantissa. Put in their place
// they make the number, too small by the difference of the exponents' offsets.
struct Float8 {
    const uint8_t* values;
    const float* scales;

    void widen(int64_t row, int64_t start, int64_t size, int64_t inner, float* to) const {
        const uint8_t* from = values + row * inner + start;
        uint32_t bits[PART];
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
            uint32_t number = from[i];
            bits[i] = (number & 0x80u) << 24 | (number & 0x7fu) << 20;
        }
        std::memcpy(to, bits, size * sizeof(float));
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) to[i] *= 0x1p120f;
    }

    float scale(int64_t row) const { return scales[row]; }
};

struct Nf4 {
    const uint8_t* values;
    const float* scales;  // of blocks; without them they are in 8 bits:
    const uint8_t* fine;  // of blocks, one of `fine_levels` times one of `outer` (for 256 blocks), plus `offset`
    const float* fine_levels;
    const float* outer;
    const float* offset;
    const float* levels;  // sixteen
    int64_t block;        // weights that share a scale

    float scale_of(int64_t place) const {
        return scales ? scales[place] : fine_levels[fine[place]] * outer[place / 256] + *offset;
    }

    void widen(int64_t row, int64_t start, int64_t size, int64_t inner, float* to) const {
        const uint8_t* from = values + (row * inner + start) / 2;
        int64_t place = (row * inner + start) / block;
        for (int64_t done = 0; done < size; done += block, ++place) {
            float scale = scale_of(place);
#if defined(__GNUC__) && !defined(__clang__)
            typedef int32_t Whole __attribute__((vector_size(32)));
            typedef uint32_t Bits __attribute__((vector_size(32)));
            const Bits apart = {4, 0, 12, 8, 20, 16, 28, 24};  // the earlier weight is in the high half of a byte
            Lanes low = lanes(levels), high = lanes(levels + LANES), share = scale - Lanes{};
            for (int64_t i = done; i < done + block; i += LANES) {
                uint32_t packed;
                std::memcpy(&packed, from + i / 2, 4);
                Whole level = reinterpret_cast<Whole>((packed - Bits{}) >> apart & 15u);
                Lanes found = __builtin_shuffle(low, high, level) * share;
                std::memcpy(to + i, &found, sizeof(found));
            }
#else
            for (int64_t i = done; i < done + block; i += 2) {
                to[i] = levels[from[i / 2] >> 4] * scale;
                to[i + 1] = levels[from[i / 2] & 15] * scale;
            }
#endif
        }
    }

    float scale(int64_t) const { return 1.0f; }
};

// x (count, inner), out (count, rows).
template <typename Weights>
void multiply(const Weights& weights, const float* x, float* out, int64_t count, int64_t rows, int64_t inner,
              int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < rows; first += TOGETHER) {
        int64_t last = first + TOGETHER < rows ? first + TOGETHER : rows;
        std::vector<float> sums(TOGETHER * count);
        float wide[PART];
        for (int64_t start = 0; start < inner; start += PART) {
            int64_t size = inner - start < PART ? inner - start : PART;
            for (int64_t row = first; row < last; ++row) {
                weights.widen(row, start, size, inner, wide);
                float* own = sums.data() + (row - first) * count;
                in_lots(count, [&](auto lot, int64_t n) {
                    add_products<lot>(wide, x + n * inner + start, inner, size, own + n);
                });
            }
        }
        for (int64_t n = 0; n < count; ++n)
            for (int64_t row = first; row < last; ++row)
                out[n * rows + row] = sums[(row - first) * count + n] * weights.scale(row);
    }
}

constexpr int64_t BLOCK = 64;     // rows of INT4 that are stored together
constexpr int64_t LARGEST = 64;   // the largest group that shares a scale and a middle
constexpr int64_t ABREAST = 32;   // rows that are added up in registers

// Adds the products of N rows of activations (N, group), `stride` apart, with whole numbers (group, BLOCK).
template <int N>
inline void add_columns(const float* whole, const float* x, int64_t stride, int64_t group, float* sums) {
    for (int64_t part = 0; part < BLOCK; part += ABREAST) {
        Lanes found[N][ABREAST / LANES] = {};
        for (int64_t i = 0; i < group; ++i) {
            for (int64_t k = 0; k < ABREAST / LANES; ++k) {
                Lanes own = lanes(whole + i * BLOCK + part + k * LANES);
                for (int n = 0; n < N; ++n) found[n][k] += own * x[n * stride + i];
            }
        }
        for (int n = 0; n < N; ++n) std::memcpy(sums + n * BLOCK + part, found[n], sizeof(found[n]));
    }
}

// `values` (rows / 64, inner, 32), `numbers` (inner / group, rows, 2) in bfloat16, scale and middle.
void multiply_int4(const uint8_t* values, const uint16_t* numbers, const float* x, float* out, int64_t count,
                   int64_t rows, int64_t inner, int64_t group, int threads) {
    int64_t groups = inner / group;
    std::vector<float> totals(count * groups);  // of the activations of each group
    for (int64_t n = 0; n < count; ++n)
        for (int64_t place = 0; place < groups; ++place) {
            float sum = 0.0f;
            for (int64_t i = 0; i < group; ++i) sum += x[n * inner + place * group + i];
            totals[n * groups + place] = sum;
        }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < rows / BLOCK; ++block) {
        std::vector<float> sums(2 * count * BLOCK);
        float* found = sums.data() + count * BLOCK;
        float whole[LARGEST * BLOCK], scale[BLOCK], middle[BLOCK];
        for (int64_t place = 0; place < groups; ++place) {
            const uint8_t* from = values + (block * inner + place * group) * (BLOCK / 2);
            for (int64_t i = 0; i < group; ++i) {
                const uint8_t* column = from + i * (BLOCK / 2);
                float* to = whole + i * BLOCK;
#pragma omp simd
                for (int64_t row = 0; row < BLOCK / 2; ++row) to[row] = static_cast<float>((column[row] & 15) - 8);
#pragma omp simd
                for (int64_t row = 0; row < BLOCK / 2; ++row)
                    to[BLOCK / 2 + row] = static_cast<float>((column[row] >> 4) - 8);
            }
            const uint16_t* number = numbers + (place * rows + block * BLOCK) * 2;
            for (int64_t row = 0; row < BLOCK; ++row) {
                scale[row] = from_bits(static_cast<uint32_t>(number[2 * row]) << 16);
                middle[row] = from_bits(static_cast<uint32_t>(number[2 * row + 1]) << 16);
            }
            int64_t n = 0;
            for (; n + 2 <= count; n += 2)
                add_columns<2>(whole, x + n * inner + place * group, inner, group, found + n * BLOCK);
            if (n < count) add_columns<1>(whole, x + n * inner + place * group, inner, group, found + n * BLOCK);
            for (n = 0; n < count; ++n) {
                float total = totals[n * groups + place];
#pragma omp simd
                for (int64_t row = 0; row < BLOCK; ++row)
                    sums[n * BLOCK + row] += scale[row] * found[n * BLOCK + row] + middle[row] * total;
            }
        }
        for (int64_t n = 0; n < count; ++n)
            std::memcpy(out + n * rows + block * BLOCK, sums.data() + n * BLOCK, BLOCK * sizeof(float));
    }
}

}  // namespace

extern "C" void by_int8(const float* x, float* out, const int8_t* values, const float* scales, int64_t count,
                        int64_t rows, int64_t inner, int threads) {
    multiply(Int8{values, scales}, x, out, count, rows, inner, threads);
}

extern "C" void by_fp8(const float* x, float* out, const uint8_t* values, const float* scales, int64_t count,
                       int64_t rows, int64_t inner, int threads) {
    multiply(Float8{values, scales}, x, out, count, rows, inner, threads);
}

extern "C" void by_nf4(const float* x, float* out, const uint8_t* values, const float* scales, const uint8_t* fine,
                       const float* fine_levels, const float* outer, const float* offset, const float* levels,
                       int64_t count, int64_t rows, int64_t inner, int64_t block, int threads) {
    Nf4 weights{values, scales, fine, fine_levels, outer, offset, levels, block};
    multiply(weights, x, out, count, rows, inner, threads);
}

extern "C" void by_int4(const float* x, float* out, const uint8_t* values, const uint16_t* numbers, int64_t count,
                        int64_t rows, int64_t inner, int64_t group, int threads) {
    multiply_int4(values, numbers, x, out, count, rows, inner, group, threads);
}
