// Work between matmuls, each piece of it in one pass over memory. Numbers are computed in float32 and rounded once.
//
// Compiled on the user's machine by its C++ compiler. Threads are those of the OpenMP library that PyTorch has loaded,
// which is why this file is not linked with one of its own.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "lanes.h"

namespace {

struct Bfloat16 {
    uint16_t bits;
};

inline float load(float x) { return x; }

inline float load(Bfloat16 x) {
    uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float found;
    std::memcpy(&found, &bits, 4);
    return found;
}

inline void store(float* place, float x) { *place = x; }

inline void store(Bfloat16* place, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits += 0x7fff + ((bits >> 16) & 1);  // to the nearest, of two equally near the even one
    place->bits = static_cast<uint16_t>(bits >> 16);
}

// e to the power of x, relative error below 2e-7; 0 far below and infinity far above the range of float32.
inline float exponential(float x) {
    float low = x < -87.0f ? -87.0f : x;
    low = low > 88.5f ? 88.5f : low;
    float n = std::nearbyintf(low * 1.44269504f);
    float r = low - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

template <typename T>
inline float scale_of(const T* x, int64_t size, float eps) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; ++i) {
        float value = load(x[i]);
        sum += value * value;
    }
    return 1.0f / std::sqrt(sum / static_cast<float>(size) + eps);
}

template <typename T>
void norm(const T* x, const T* weight, T* out, int64_t rows, int64_t size, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T* from = x + row * size;
        T* to = out + row * size;
        float scale = scale_of(from, size, eps);
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) store(to + i, load(from[i]) * scale * load(weight[i]));
    }
}

// One head: normalised, then rotated by the "rotate half" rule. `sin` is negative in its first half.
template <typename T>
inline void head(const T* from, const T* weight, const float* cos, const float* sin, T* to, int64_t dim, float eps) {
    float scale = scale_of(from, dim, eps);
    int64_t half = dim / 2;
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
        float first = load(from[i]) * scale * load(weight[i]);
        float second = load(from[i + half]) * scale * load(weight[i + half]);
        store(to + i, first * cos[i] + second * sin[i]);
        store(to + i + half, second * cos[i + half] + first * sin[i + half]);
    }
}

template <typename T>
void heads(const T* qkv, const T* q_weight, const T* k_weight, const float* cos, const float* sin, T* q, T* k,
           int64_t rows, int64_t q_heads, int64_t k_heads, int64_t dim, int64_t stride, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T* from = qkv + row * stride;
        for (int64_t i = 0; i < q_heads; ++i)
            head(from + i * dim, q_weight, cos + row * dim, sin + row * dim, q + (row * q_heads + i) * dim, dim, eps);
        from += q_heads * dim;
        for (int64_t i = 0; i < k_heads; ++i)
            head(from + i * dim, k_weight, cos + row * dim, sin + row * dim, k + (row * k_heads + i) * dim, dim, eps);
    }
}

template <typename T>
void gated(const T* gate_up, T* out, int64_t rows, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T* gate = gate_up + row * 2 * size;
        const T* up = gate + size;
        T* to = out + row * size;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
            float x = load(gate[i]);
            store(to + i, x / (1.0f + exponential(-x)) * load(up[i]));
        }
    }
}

// SiLU of a feature map whose channels are scaled and shifted, each by numbers of its own. Rows are pixels.
template <typename T>
void activated(const T* x, const float* scale, const float* shift, T* out, int64_t rows, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T* from = x + row * size;
        T* to = out + row * size;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
            float value = load(from[i]) * scale[i] + shift[i];
            store(to + i, value / (1.0f + exponential(-value)));
        }
    }
}

// What one new token sees of a context, as far as it lies in one place.
struct Piece {
    int64_t address;  // of the first key of the first head in the first layer
    int64_t stride;   // bytes from one layer to the next
    int64_t slots;    // from one head to the next; the values lie behind the keys of all heads
    int64_t tokens;
};

// A new token: its slot among all new tokens, and the number of its pieces, the last of which ends with itself.
struct Row {
    int64_t slot;
    int64_t pieces;
};

// Attention is computed over so many tokens at a time, each with a softmax of its own, and put together in their order.
// So it depends neither on the number of threads nor on what other tokens there are.
constexpr int64_t STRETCH = 256;

template <typename T>
struct Stretch {
    int64_t row;
    const T* keys;  // of the first head
    int64_t slots;
    int64_t tokens;
};

// Numbers (rows, dim) in float32: those that are there, or a copy in `room`.
inline const float* in_float32(const float* from, float*, int64_t) { return from; }

inline const float* in_float32(const Bfloat16* from, float* room, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) room[i] = load(from[i]);
    return room;
}

// Products of N queries (N, dim) with all keys (tokens, dim) -> (N, tokens). Several sums at once keep the processor busy.
template <int N>
void score(const float* queries, const float* keys, int64_t tokens, int64_t dim, float* scores) {
    for (int64_t t = 0; t < tokens; ++t) {
        const float* key = keys + t * dim;
        Lanes sums[N] = {};
        int64_t i = 0;
        for (; i + LANES <= dim; i += LANES) {
            Lanes own = lanes(key + i);
            for (int n = 0; n < N; ++n) sums[n] += lanes(queries + n * dim + i) * own;
        }
        for (int n = 0; n < N; ++n) {
            float sum = 0.0f;
            for (int64_t lane = 0; lane < LANES; ++lane) sum += sums[n][lane];
            for (int64_t rest = i; rest < dim; ++rest) sum += queries[n * dim + rest] * key[rest];
            scores[n * tokens + t] = sum;
        }
    }
}

// Sums of values (tokens, dim) by N lists of weights (N, tokens) -> N rows of dim numbers, `step` apart.
template <int N>
void weigh(const float* weights, const float* values, int64_t tokens, int64_t dim, float* out, int64_t step) {
    int64_t i = 0;
    for (; i + LANES <= dim; i += LANES) {
        Lanes sums[N] = {};
        for (int64_t t = 0; t < tokens; ++t) {
            Lanes own = lanes(values + t * dim + i);
            for (int n = 0; n < N; ++n) sums[n] += weights[n * tokens + t] * own;
        }
        for (int n = 0; n < N; ++n) std::memcpy(out + n * step + i, &sums[n], sizeof(Lanes));
    }
    for (; i < dim; ++i) {
        for (int n = 0; n < N; ++n) {
            float sum = 0.0f;
            for (int64_t t = 0; t < tokens; ++t) sum += weights[n * tokens + t] * values[t * dim + i];
            out[n * step + i] = sum;
        }
    }
}

// `found`: for each query of a group its largest score, the sum of the exponentials, and the sum of the weighted values.
template <typename T>
void attend_stretch(const T* queries, const T* keys, const T* values, int64_t tokens, int64_t group, int64_t dim,
                    float* found) {
    float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    std::vector<float> memory(group * (dim + tokens) + (sizeof(T) < sizeof(float) ? tokens * dim : 0));
    float* scaled = memory.data();
    float* scores = scaled + group * dim;
    float* room = scores + group * tokens;
    for (int64_t i = 0; i < group * dim; ++i) scaled[i] = load(queries[i]) * scale;
    const float* wide = in_float32(keys, room, tokens * dim);
    in_lots(group, [&](auto count, int64_t first) {
        score<count>(scaled + first * dim, wide, tokens, dim, scores + first * tokens);
    });
    for (int64_t g = 0; g < group; ++g) {
        float* own = scores + g * tokens;
        float most = own[0], sum = 0.0f;
#pragma omp simd reduction(max : most)
        for (int64_t t = 0; t < tokens; ++t) most = own[t] > most ? own[t] : most;
#pragma omp simd reduction(+ : sum)
        for (int64_t t = 0; t < tokens; ++t) {
            own[t] = exponential(own[t] - most);
            sum += own[t];
        }
        found[g * (dim + 2)] = most;
        found[g * (dim + 2) + 1] = sum;
    }
    wide = in_float32(values, room, tokens * dim);
    float* out = found + 2;
    int64_t step = dim + 2;
    in_lots(group, [&](auto count, int64_t first) {
        weigh<count>(scores + first * tokens, wide, tokens, dim, out + first * step, step);
    });
}

// Writes the keys and values of new tokens behind what they see, and attends.
template <typename T>
void attend(const T* q, const T* k, const T* v, T* out, int64_t q_stride, int64_t k_stride, int64_t v_stride,
            const Row* rows, int64_t count, const Piece* piece, int64_t layer, int64_t q_heads, int64_t k_heads,
            int64_t dim, int threads) {
    int64_t group = q_heads / k_heads, width = dim + 2;
    std::vector<Stretch<T>> stretches;
    for (int64_t row = 0; row < count; ++row) {
        for (int64_t n = 0; n < rows[row].pieces; ++n, ++piece) {
            T* keys = reinterpret_cast<T*>(piece->address + layer * piece->stride);
            int64_t slots = piece->slots, tokens = piece->tokens;
            if (n + 1 == rows[row].pieces) {
                for (int64_t head = 0; head < k_heads; ++head) {
                    T* place = keys + (head * slots + tokens - 1) * dim;
                    std::memcpy(place, k + rows[row].slot * k_stride + head * dim, dim * sizeof(T));
                    std::memcpy(place + k_heads * slots * dim, v + rows[row].slot * v_stride + head * dim,
                                dim * sizeof(T));
                }
            }
            for (int64_t start = 0; start < tokens; start += STRETCH)
                stretches.push_back({row, keys + start * dim, slots, std::min(STRETCH, tokens - start)});
        }
    }
    int64_t tasks = static_cast<int64_t>(stretches.size()) * k_heads;
    std::vector<float> found(tasks * group * width);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < tasks; ++task) {
        const Stretch<T>& own = stretches[task / k_heads];
        int64_t head = task % k_heads;
        const T* keys = own.keys + head * own.slots * dim;
        attend_stretch(q + rows[own.row].slot * q_stride + head * group * dim, keys, keys + k_heads * own.slots * dim,
                       own.tokens, group, dim, found.data() + task * group * width);
    }
    int64_t past = static_cast<int64_t>(stretches.size());
    for (int64_t first = 0, last; first < past; first = last) {
        for (last = first + 1; last < past && stretches[last].row == stretches[first].row;) ++last;
        T* to = out + rows[stretches[first].row].slot * q_heads * dim;
        for (int64_t head = 0; head < q_heads; ++head) {
            // The numbers of this head in the first stretch, and how far it is to those in the next.
            float* own = found.data() + (first * q_heads + head) * width;
            int64_t step = q_heads * width;
            float most = own[0];
            for (int64_t n = 1; n < last - first; ++n) most = own[n * step] > most ? own[n * step] : most;
            float sum = 0.0f;
            for (int64_t n = 0; n < last - first; ++n) {
                float* next = own + n * step;
                float share = exponential(next[0] - most);
                sum += share * next[1];
                for (int64_t i = 0; i < dim; ++i) own[2 + i] = (n ? own[2 + i] : 0.0f) + share * next[2 + i];
            }
            for (int64_t i = 0; i < dim; ++i) store(to + head * dim + i, own[2 + i] / sum);
        }
    }
}

}  // namespace

#define EXPORTED(type, suffix)                                                                                        \
    extern "C" void norm_##suffix(const type* x, const type* weight, type* out, int64_t rows, int64_t size,          \
                                  float eps, int threads) {                                                           \
        norm(x, weight, out, rows, size, eps, threads);                                                               \
    }                                                                                                                 \
    extern "C" void heads_##suffix(const type* qkv, const type* q_weight, const type* k_weight, const float* cos,     \
                                   const float* sin, type* q, type* k, int64_t rows, int64_t q_heads,                 \
                                   int64_t k_heads, int64_t dim, int64_t stride, float eps, int threads) {            \
        heads(qkv, q_weight, k_weight, cos, sin, q, k, rows, q_heads, k_heads, dim, stride, eps, threads);            \
    }                                                                                                                 \
    extern "C" void gated_##suffix(const type* gate_up, type* out, int64_t rows, int64_t size, int threads) {         \
        gated(gate_up, out, rows, size, threads);                                                                     \
    }                                                                                                                 \
    extern "C" void activated_##suffix(const type* x, const float* scale, const float* shift, type* out,             \
                                       int64_t rows, int64_t size, int threads) {                                     \
        activated(x, scale, shift, out, rows, size, threads);                                                         \
    }                                                                                                                 \
    extern "C" void attend_##suffix(const type* q, const type* k, const type* v, type* out, int64_t q_stride,         \
                                    int64_t k_stride, int64_t v_stride, const void* rows, int64_t count,              \
                                    const void* pieces, int64_t layer, int64_t q_heads, int64_t k_heads, int64_t dim, \
                                    int threads) {                                                                    \
        attend(q, k, v, out, q_stride, k_stride, v_stride, static_cast<const Row*>(rows), count,                      \
               static_cast<const Piece*>(pieces), layer, q_heads, k_heads, dim, threads);                             \
    }

EXPORTED(float, float32)
EXPORTED(Bfloat16, bfloat16)
