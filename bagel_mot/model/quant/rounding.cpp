// Quantises weights, and dequantises them, each matrix in one pass over memory: to the bit, but for the sign of a zero,
// what PyTorch's operations make of it in INT8 (`rows.py`), INT4 (`int4.py`) and NF4 (`nf4.py`), where the rules are
// explained.
//
// Compiled on the user's machine with the other passes (`bagel_mot/model/passes.py`), but without the flags that let
// sums take any order. Functions return 1, and their results are of no use, if a weight is not finite.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct Bfloat16 {
    uint16_t bits;
};

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline float load(float x) { return x; }

inline float load(Bfloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }

inline bool finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

inline uint16_t nearest_bfloat16(float x) {
    uint32_t bits = bits_of(x);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The first number of bfloat16 that is not below a scale of at least 0; 1 for 0.
inline float scale_above(float scale) {
    uint32_t bits = bits_of(scale);
    uint32_t above = (bits & 0xffffu) ? (bits & 0xffff0000u) + 0x10000u : bits;
    return scale == 0.0f ? 1.0f : from_bits(above);
}

// Widens numbers and finds the lowest and the highest; 1 if one is not finite.
template <typename T>
inline int widen(const T* from, float* to, int64_t size, float* lowest, float* highest) {
    float low = load(from[0]), high = low;
    uint32_t most = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(max : most)
    for (int64_t i = 0; i < size; ++i) {
        float x = load(from[i]);
        to[i] = x;
        low = x < low ? x : low;
        high = x > high ? x : high;
        uint32_t exponent = bits_of(x) & 0x7f800000u;
        most = exponent > most ? exponent : most;
    }
    *lowest = low;
    *highest = high;
    return most == 0x7f800000u;
}

constexpr int64_t PART = 1024;  // values of a row that are widened at a time

template <typename T>
int to_int8(const T* weight, int8_t* values, float* scales, int64_t rows, int64_t inner, int threads) {
    int bad = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : bad)
    for (int64_t row = 0; row < rows; ++row) {
        float wide[PART];
        const T* from = weight + row * inner;
        int8_t* to = values + row * inner;
        float low = 0.0f, high = 0.0f;
        for (int64_t start = 0; start < inner; start += PART) {
            int64_t size = inner - start < PART ? inner - start : PART;
            float lowest, highest;
            bad |= widen(from + start, wide, size, &lowest, &highest);
            low = start == 0 || lowest < low ? lowest : low;
            high = start == 0 || highest > high ? highest : high;
        }
        float scale = scale_above((-low > high ? -low : high) / 127.0f);
        bad |= !finite(scale);
        scales[row] = scale;
        for (int64_t start = 0; start < inner; start += PART) {
            int64_t size = inner - start < PART ? inner - start : PART;
            int32_t whole[PART];
#pragma omp simd
            for (int64_t i = 0; i < size; ++i)
                whole[i] = static_cast<int32_t>(std::nearbyintf(load(from[start + i]) / scale));
#pragma omp simd
            for (int64_t i = 0; i < size; ++i) to[start + i] = static_cast<int8_t>(whole[i]);
        }
    }
    return bad;
}

constexpr int64_t BLOCK = 64;  // neighbours that share a scale in INT4 and NF4

// `borders` (15) between the levels; `largest` (rows * inner / 64) of each block.
template <typename T>
int to_nf4(const T* weight, uint8_t* values, float* largest, const float* borders, int64_t blocks, int threads) {
    int bad = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : bad)
    for (int64_t block = 0; block < blocks; ++block) {
        float wide[BLOCK], low, high;
        int32_t level[BLOCK];
        bad |= widen(weight + block * BLOCK, wide, BLOCK, &low, &high);
        float most = -low > high ? -low : high;
        largest[block] = most;
        float scale = most == 0.0f ? 1.0f : most;
#pragma omp simd
        for (int64_t i = 0; i < BLOCK; ++i) {
            float x = wide[i] / scale;
            int32_t above = 0;
#pragma GCC unroll 15
            for (int border = 0; border < 15; ++border) above += x > borders[border];
            level[i] = above;
        }
        uint8_t* to = values + block * (BLOCK / 2);
        for (int64_t i = 0; i < BLOCK / 2; ++i) to[i] = static_cast<uint8_t>(level[2 * i] << 4 | level[2 * i + 1]);
    }
    return bad;
}

constexpr int64_t SCALE_BLOCK = 256, LEVELS = 256;  // scales that share a scale, and levels of a scale

// The sum of a block in the order of PyTorch's, whose registers hold `LANES` numbers: four registers are added up apart,
// then with one another, then their lanes one after another.
template <int LANES>
inline float sum_in_order(const float* x) {
    constexpr int REGISTERS = BLOCK / LANES;
    float parts[4][LANES];
    for (int part = 0; part < 4; ++part)
#pragma omp simd
        for (int lane = 0; lane < LANES; ++lane) {
            float sum = 0.0f + x[part * LANES + lane];
            if (REGISTERS > 4) sum += x[((part + 4) * LANES + lane) % BLOCK];
            parts[part][lane] = sum;
        }
    float sums[LANES];
#pragma omp simd
    for (int lane = 0; lane < LANES; ++lane)
        sums[lane] = ((parts[0][lane] + parts[1][lane]) + parts[2][lane]) + parts[3][lane];
    float sum = 0.0f;
    for (int lane = 0; lane < LANES; ++lane) sum += sums[lane];
    return sum;
}

constexpr int64_t ROWS = 64;  // of INT4 that are stored together

// Rows and columns of 8 x 8 bytes exchanged, in words of 8 bytes whose first byte is the lowest. Strides are from row to
// row.
inline void turn(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
    uint64_t x[8];
    for (int row = 0; row < 8; ++row) std::memcpy(&x[row], from + row * from_stride, 8);
    const uint64_t kept[3] = {0x00ff00ff00ff00ffu, 0x0000ffff0000ffffu, 0x00000000ffffffffu};
#pragma GCC unroll 3
    for (int step = 0; step < 3; ++step) {
        int apart = 1 << step;
#pragma GCC unroll 8
        for (int row = 0; row < 8; ++row) {
            if (row & apart) continue;
            uint64_t first = x[row], second = x[row + apart], mask = kept[step];
            x[row] = (first & mask) | (second & mask) << 8 * apart;
            x[row + apart] = (first >> 8 * apart & mask) | (second & ~mask);
        }
    }
    for (int row = 0; row < 8; ++row) std::memcpy(to + row * to_stride, &x[row], 8);
}

// `values` (rows / 64, inner, 32), `numbers` (inner / 64, rows, 2): scale and middle.
template <typename T, int LANES>
int to_int4(const T* weight, uint8_t* values, uint16_t* numbers, int64_t rows, int64_t inner, int threads) {
    int bad = 0;
    int64_t groups = inner / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2) reduction(| : bad)
    for (int64_t block = 0; block < rows / ROWS; ++block) {
        for (int64_t place = 0; place < groups; ++place) {
            uint8_t whole[ROWS][BLOCK];
            for (int64_t row = 0; row < ROWS; ++row) {
                float wide[BLOCK], low, high;
                bad |= widen(weight + (block * ROWS + row) * inner + place * BLOCK, wide, BLOCK, &low, &high);
                float mean = sum_in_order<LANES>(wide) / static_cast<float>(BLOCK);
                float scale = scale_above((high - low) / 15.0f);
                bad |= !finite(scale);
                float below = -low / scale;
                if (low < 0.0f && high > 0.0f) below = std::nearbyintf(below);
                float middle = high == low ? low : (8.0f - below) * scale;
                middle = from_bits(static_cast<uint32_t>(nearest_bfloat16(middle)) << 16);
                int32_t level[BLOCK];
                int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < BLOCK; ++i) {
                    float q = std::nearbyintf((wide[i] - middle) / scale) + 8.0f;
                    q = q < 0.0f ? 0.0f : q;
                    q = q > 15.0f ? 15.0f : q;
                    level[i] = static_cast<int32_t>(q);
                    sum += level[i];
                }
#pragma omp simd
                for (int64_t i = 0; i < BLOCK; ++i) whole[row][i] = static_cast<uint8_t>(level[i]);
                middle = mean - (static_cast<float>(sum) / static_cast<float>(BLOCK) - 8.0f) * scale;
                uint16_t* number = numbers + (place * rows + block * ROWS + row) * 2;
                number[0] = nearest_bfloat16(scale);
                number[1] = nearest_bfloat16(middle);
            }
            uint8_t* to = values + (block * inner + place * BLOCK) * (ROWS / 2);
            for (int64_t row = 0; row < ROWS / 2; ++row)
#pragma omp simd
                for (int64_t i = 0; i < BLOCK; ++i) whole[row][i] |= whole[row + ROWS / 2][i] << 4;
            for (int64_t i = 0; i < BLOCK; i += 8)
                for (int64_t row = 0; row < ROWS / 2; row += 8) turn(&whole[row][i], BLOCK, to + i * (ROWS / 2) + row, ROWS / 2);
        }
    }
    return bad;
}

inline void store(float x, float* to) { *to = x; }

inline void store(float x, uint16_t* to) { *to = nearest_bfloat16(x); }

// `values` (rows / 64, inner, 32) of the rows that are wanted; `numbers` (inner / group, all rows, 2) from the first of
// them on.
template <typename T>
void from_int4(const uint8_t* values, const uint16_t* numbers, T* out, int64_t rows, int64_t inner, int64_t group,
               int64_t all, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int64_t block = 0; block < rows / ROWS; ++block) {
        for (int64_t place = 0; place < inner / group; ++place) {
            uint8_t both[ROWS / 2][BLOCK];  // two rows in each byte
            const uint8_t* from = values + (block * inner + place * group) * (ROWS / 2);
            for (int64_t i = 0; i < group; i += 8)
                for (int64_t row = 0; row < ROWS / 2; row += 8)
                    turn(from + i * (ROWS / 2) + row, ROWS / 2, &both[row][i], BLOCK);
            for (int64_t row = 0; row < ROWS; ++row) {
                const uint16_t* number = numbers + (place * all + block * ROWS + row) * 2;
                float scale = from_bits(static_cast<uint32_t>(number[0]) << 16);
                float middle = from_bits(static_cast<uint32_t>(number[1]) << 16);
                const uint8_t* own = both[row % (ROWS / 2)];
                int shift = row < ROWS / 2 ? 0 : 4;
                T* to = out + (block * ROWS + row) * inner + place * group;
#pragma omp simd
                for (int64_t i = 0; i < group; ++i) {
                    float whole = static_cast<float>(own[i] >> shift & 15) - 8.0f;
                    store(whole * scale + middle, to + i);
                }
            }
        }
    }
}

// `values` and scales of `blocks` blocks of `size` weights: `scales`, or without them one of `fine_levels` for each of
// `fine`, times one of `outer` for 256 blocks, of which `before` come before the first here, plus `offset`.
template <typename T>
void from_nf4(const uint8_t* values, const float* scales, const uint8_t* fine, const float* fine_levels,
              const float* outer, const float* offset, const float* levels, T* out, int64_t blocks, int64_t size,
              int64_t before, int threads) {
    float pairs[256][2];
    for (int byte = 0; byte < 256; ++byte) {
        pairs[byte][0] = levels[byte >> 4];
        pairs[byte][1] = levels[byte & 15];
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        float scale = scales ? scales[block] : 0.0f;
        if (!scales) {
            scale = fine_levels[fine[block]] * outer[(before + block) / SCALE_BLOCK];
            scale = scale + *offset;
        }
        const uint8_t* from = values + block * size / 2;
        T* to = out + block * size;
        for (int64_t done = 0; done < size; done += BLOCK) {
            float wide[BLOCK];
            int64_t part = size - done < BLOCK ? size - done : BLOCK;
            for (int64_t i = 0; i < part; i += 2) std::memcpy(wide + i, pairs[from[(done + i) / 2]], sizeof(pairs[0]));
#pragma omp simd
            for (int64_t i = 0; i < part; ++i) store(wide[i] * scale, to + done + i);
        }
    }
}

}  // namespace

#define EXPORTED(type, suffix)                                                                                        \
    extern "C" int to_int8_##suffix(const type* weight, int8_t* values, float* scales, int64_t rows, int64_t inner,  \
                                    int threads) {                                                                    \
        return to_int8(weight, values, scales, rows, inner, threads);                                                 \
    }                                                                                                                 \
    extern "C" int to_nf4_##suffix(const type* weight, uint8_t* values, float* largest, const float* borders,        \
                                   int64_t blocks, int threads) {                                                     \
        return to_nf4(weight, values, largest, borders, blocks, threads);                                             \
    }                                                                                                                 \
    extern "C" int to_int4_##suffix(const type* weight, uint8_t* values, uint16_t* numbers, int64_t rows,            \
                                    int64_t inner, int lanes, int threads) {                           \
        if (lanes == 16) return to_int4<type, 16>(weight, values, numbers, rows, inner, threads);              \
        return to_int4<type, 8>(weight, values, numbers, rows, inner, threads);                                \
    }

EXPORTED(float, float32)
EXPORTED(Bfloat16, bfloat16)

#define BACK(type, suffix)                                                                                            \
    extern "C" void from_int4_##suffix(const uint8_t* values, const uint16_t* numbers, type* out, int64_t rows,       \
                                       int64_t inner, int64_t group, int64_t all, int threads) {                      \
        from_int4(values, numbers, out, rows, inner, group, all, threads);                                            \
    }                                                                                                                 \
    extern "C" void from_nf4_##suffix(const uint8_t* values, const float* scales, const uint8_t* fine,                \
                                      const float* fine_levels, const float* outer, const float* offset,              \
                                      const float* levels, type* out, int64_t blocks, int64_t size, int64_t before,   \
                                      int threads) {                                                                  \
        from_nf4(values, scales, fine, fine_levels, outer, offset, levels, out, blocks, size, before, threads);       \
    }

BACK(float, float32)
BACK(uint16_t, bfloat16)

// Scales less their mean, in 8 bits: `fine` (count) levels between the `borders` (255), `outer` (count / 256, rounded
// up) the largest of each block.
extern "C" int to_8_bits(const float* scales, const float* mean, uint8_t* fine, float* outer, const float* borders,
                         int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t start = 0; start < count; start += SCALE_BLOCK) {
        int64_t size = count - start < SCALE_BLOCK ? count - start : SCALE_BLOCK;
        float rest[SCALE_BLOCK];
        float most = 0.0f;
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < size; ++i) {
            rest[i] = scales[start + i] - *mean;
            float large = std::fabs(rest[i]);
            most = large > most ? large : most;
        }
        outer[start / SCALE_BLOCK] = most;
        float scale = most == 0.0f ? 1.0f : most;
        for (int64_t i = 0; i < size; ++i) {
            float x = rest[i] / scale;
            int64_t below = 0;  // borders below x, of which there is none at the end of `borders`
            for (int64_t step = LEVELS / 2; step; step /= 2) below += x > borders[below + step - 1] ? step : 0;
            fine[start + i] = static_cast<uint8_t>(below);
        }
    }
    return 0;
}
