// What the passes compute with several numbers at a time.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

// Eight numbers that are computed with at once, whatever the processor's registers hold.
typedef float Lanes __attribute__((vector_size(32)));
constexpr int64_t LANES = 8;

inline Lanes lanes(const float* from) {
    Lanes found;
    std::memcpy(&found, from, sizeof(found));
    return found;
}

// Calls work(count, first) for rows in lots of at most four, whose number the compiler knows.
template <typename Work>
void in_lots(int64_t rows, Work work) {
    int64_t first = 0;
    for (; first + 4 <= rows; first += 4) work(std::integral_constant<int, 4>(), first);
    switch (rows - first) {
        case 3: return work(std::integral_constant<int, 3>(), first);
        case 2: return work(std::integral_constant<int, 2>(), first);
        case 1: return work(std::integral_constant<int, 1>(), first);
    }
}

}  // namespace
