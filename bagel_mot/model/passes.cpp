// Elementwise work between matmuls, each in one pass over memory. Numbers are computed in float32 and rounded once.
//
// Compiled on the user's machine by its C++ compiler. Threads are those of the OpenMP library that PyTorch has loaded,
// which is why this file is not linked with one of its own.

#include <cmath>
#include <cstdint>
#include <cstring>

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
    }

EXPORTED(float, float32)
EXPORTED(Bfloat16, bfloat16)
