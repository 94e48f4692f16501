// Numbers as kernels store them: fp32, bf16 and fp16, one, some or 16 bytes at a time. TYPE is 0 fp32, 1 bf16, 2 fp16.

#ifndef MM_RWKV7_NUMBERS_H
#define MM_RWKV7_NUMBERS_H

#include "primitives.h"

template <int TYPE> struct Number {
    using Stored = unsigned short;
    DEVICE float widen(Stored x) { return TYPE == 1 ? bf16_to_float(x) : half_to_float(x); }
    DEVICE Stored narrow(float x) { return TYPE == 1 ? float_to_bf16(x) : float_to_half(x); }
    DEVICE unsigned pack(float low, float high) { return TYPE == 1 ? pack_bf16(low, high) : pack_half(low, high); }
};
template <> struct Number<0> {
    using Stored = float;
    DEVICE float widen(float x) { return x; }
    DEVICE float narrow(float x) { return x; }
};
template <int TYPE> using Stored = typename Number<TYPE>::Stored;

// COUNT neighbouring numbers in memory, moved in one go (COUNT a power of two, at most 16 bytes in all).
template <int TYPE, int COUNT> struct alignas(COUNT * sizeof(Stored<TYPE>)) Packed {
    Stored<TYPE> x[COUNT];
};

template <int COUNT> struct Floats {
    float x[COUNT];
};

template <int TYPE, int COUNT> DEVICE Floats<COUNT> load(const void* base, long long at) {
    auto place = static_cast<const Stored<TYPE>*>(base) + at;
    Packed<TYPE, COUNT> packed = *reinterpret_cast<const Packed<TYPE, COUNT>*>(place);
    Floats<COUNT> y;
#pragma unroll
    for (int i = 0; i < COUNT; i++) y.x[i] = Number<TYPE>::widen(packed.x[i]);
    return y;
}

template <int TYPE, int COUNT> DEVICE void store(void* base, long long at, const Floats<COUNT>& y) {
    Packed<TYPE, COUNT> packed;
#pragma unroll
    for (int i = 0; i < COUNT; i++) packed.x[i] = Number<TYPE>::narrow(y.x[i]);
    *reinterpret_cast<Packed<TYPE, COUNT>*>(static_cast<Stored<TYPE>*>(base) + at) = packed;
}

// 16 bytes as numbers.
DEVICE float bits_to_float(unsigned bits) {
    union {
        unsigned bits;
        float number;
    } both{bits};
    return both.number;
}

DEVICE unsigned part(const Vector4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// The signed byte i of a word.
DEVICE float byte_to_float(unsigned word, int i) { return static_cast<signed char>(word >> (8 * i)); }

// (warp) The sum over groups of LANES neighbouring lanes, for each of them.
template <int LANES = 32> DEVICE float sum_lanes(float x) {
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

DEVICE float sigmoid(float x) { return reciprocal(1.0f + exp_fast(-x)); }

#endif
