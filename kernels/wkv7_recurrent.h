// WKV-7 one step after another, in fp32: what wkv7_recurrent_forward.cu and wkv7_recurrent_backward.cu share. For every
// chip from sm_75 on, and for few steps on any chip.
//
//   S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T,   y_t = S_t r_t,   w = exp(log_w)
//
// Rows of S (values) never meet in the forward. A thread holds ROWS rows x 8 keys of S in registers, LANES neighbouring
// lanes hold a row together, and the products with a and r are summed over them by shuffles. Inputs go through shared
// memory, TILE steps at a time, as fp32.
//
// Fixed when compiled: HEAD_SIZE (N, a multiple of 8 up to 128), INPUT (0 bf16, 1 fp16, 2 fp32: what all tensors are but
// log_w, its gradient, and states, which are fp32), ROWS (1, 2, 4 or 8), THREADS (a multiple of 32), SPAN.
// Tensors are (B, T, H, N), states (sequences, H, N, N) as [value, key], entries (rows, H, N, N).

#ifndef MM_RWKV7_WKV7_RECURRENT_H
#define MM_RWKV7_WKV7_RECURRENT_H

#include "primitives.h"

constexpr int HEAD = HEAD_SIZE;
constexpr int BF16 = 0, FP32 = 2;  // formats; 1 is fp16
constexpr int KEYS = 8;  // of a thread: 4 c .. 4 c + 3 for c = lane and c = lane + LANES
constexpr int TILE = 8;

DEVICE constexpr int power_of_two_from(int least) {
    int power = 1;
    while (power < least) power *= 2;
    return power;
}

constexpr int LANES = power_of_two_from(HEAD / KEYS);
constexpr int PADDED = LANES * KEYS;  // keys from HEAD on are zeros
constexpr int GROUPS = THREADS / LANES;
constexpr int WARPS = THREADS / 32;
constexpr int UNITS = HEAD / 8;  // a unit is 8 values of one step, what a thread loads at once

static_assert(HEAD % 8 == 0 && HEAD <= 128 && HEAD % ROWS == 0 && THREADS % 32 == 0 && SPAN % TILE == 0, "");

struct alignas(16) Four {
    float x[4];
};

using Tile = float[TILE][PADDED];
using Patch = float[ROWS][KEYS];  // a thread's part of a state

// What a block works on: the steps of one sequence in one head.
struct Work {
    long long first;  // place of the first step's vector, in vectors of HEAD values
    int steps;
    int head, heads;
    long long state;    // place of the state, in states
    long long entries;  // place of the first entry, in rows
};

// Where a step's vector begins in an input, and where a span's entry is among the entries.
DEVICE long long at(const Work& w, int step) { return (w.first + static_cast<long long>(step) * w.heads) * HEAD; }
DEVICE long long entry(const Work& w, int span) { return (w.entries + span) * w.heads + w.head; }

DEVICE Work work(int item, const int* cu_seqlens, int time, int heads) {
    int sequence = item / heads, head = item % heads;
    Work w;
    long long start = static_cast<long long>(sequence) * time;
    w.steps = time;
    w.entries = static_cast<long long>(sequence) * ((time + SPAN - 1) / SPAN);
    if (cu_seqlens) {
        start = cu_seqlens[sequence];
        w.steps = cu_seqlens[sequence + 1] - cu_seqlens[sequence];
        w.entries = start / SPAN + sequence;
    }
    w.first = start * heads + head;
    w.head = head;
    w.heads = heads;
    w.state = item;
    return w;
}

// Eight values as they lie in memory.
template <int FORMAT> struct Raw {
    Vector4 halves;
};

template <> struct Raw<FP32> {
    Four low, high;
};

template <int FORMAT> DEVICE void fetch(Raw<FORMAT>& raw, const void* from, long long index) {
    if constexpr (FORMAT == FP32) {
        const Four* place = reinterpret_cast<const Four*>(static_cast<const float*>(from) + index);
        raw.low = place[0];
        raw.high = place[1];
    } else {
        raw.halves = load_16(static_cast<const unsigned short*>(from) + index);
    }
}

template <int FORMAT> DEVICE float value(unsigned bits) {
    unsigned short half = static_cast<unsigned short>(bits);
    return FORMAT == BF16 ? bf16_to_float(half) : half_to_float(half);
}

template <int FORMAT> DEVICE Four low(const Raw<FORMAT>& raw) {
    if constexpr (FORMAT == FP32) {
        return raw.low;
    } else {
        unsigned x = raw.halves.x, y = raw.halves.y;
        return {value<FORMAT>(x), value<FORMAT>(x >> 16), value<FORMAT>(y), value<FORMAT>(y >> 16)};
    }
}

template <int FORMAT> DEVICE Four high(const Raw<FORMAT>& raw) {
    if constexpr (FORMAT == FP32) {
        return raw.high;
    } else {
        unsigned z = raw.halves.z, w = raw.halves.w;
        return {value<FORMAT>(z), value<FORMAT>(z >> 16), value<FORMAT>(w), value<FORMAT>(w >> 16)};
    }
}

DEVICE void store(void* to, long long index, float x) {
    if constexpr (INPUT == FP32) {
        static_cast<float*>(to)[index] = x;
    } else {
        static_cast<unsigned short*>(to)[index] = INPUT == BF16 ? float_to_bf16(x) : float_to_half(x);
    }
}

// A tile of one tensor on its way from global memory, in registers, to shared memory.
constexpr int LOADS = (TILE * UNITS + THREADS - 1) / THREADS;

template <int FORMAT> struct Freight {
    Raw<FORMAT> units[LOADS];
};

template <int FORMAT> DEVICE void fetch(Freight<FORMAT>& freight, const void* from, const Work& w, int step) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        int unit = thread_x() + i * THREADS, row = unit / UNITS;
        freight.units[i] = {};  // or else the registers keep what they held, which takes others
        if (row < TILE && step + row < w.steps) fetch(freight.units[i], from, at(w, step + row) + 8 * (unit % UNITS));
    }
}

template <int FORMAT> DEVICE void place(const Freight<FORMAT>& freight, Tile& tile, int steps) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        int unit = thread_x() + i * THREADS, row = unit / UNITS;
        if (row < TILE && row < steps) {
            Four* to = reinterpret_cast<Four*>(&tile[row][8 * (unit % UNITS)]);
            to[0] = low(freight.units[i]);
            to[1] = high(freight.units[i]);
        }
    }
}

DEVICE Four exp(Four f) { return {exp_fast(f.x[0]), exp_fast(f.x[1]), exp_fast(f.x[2]), exp_fast(f.x[3])}; }

DEVICE void place_decay(Freight<FP32> freight, Tile& tile, int steps) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        Raw<FP32>& unit = freight.units[i];
        unit = {exp(unit.low), exp(unit.high)};
    }
    place(freight, tile, steps);
}

template <int FORMAT> DEVICE void load(Tile& tile, const void* from, const Work& w, int step, int steps) {
    Freight<FORMAT> freight;
    fetch(freight, from, w, step);
    place(freight, tile, steps);
}

// Zeros for the keys that vectors are padded with.
DEVICE void pad(Tile* tiles, int count) {
    float* numbers = reinterpret_cast<float*>(tiles);
    if (PADDED > HEAD)
        for (int i = thread_x(); i < count * TILE * PADDED; i += THREADS) numbers[i] = 0;
}

DEVICE void read_keys(float (&x)[KEYS], const float* vector, int lane) {
    const Four* fours = reinterpret_cast<const Four*>(vector);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        Four f = fours[lane + half * LANES];
#pragma unroll
        for (int i = 0; i < 4; i++) x[4 * half + i] = f.x[i];
    }
}

DEVICE void read_patch(Patch& s, const float* states, long long state, int row, int lane) {
#pragma unroll
    for (int q = 0; q < ROWS; q++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int key = 4 * (lane + half * LANES);
            Four f = {0, 0, 0, 0};
            if (states && row + q < HEAD && key < HEAD)
                f = *reinterpret_cast<const Four*>(states + (state * HEAD + row + q) * HEAD + key);
#pragma unroll
            for (int i = 0; i < 4; i++) s[q][4 * half + i] = f.x[i];
        }
}

DEVICE void write_patch(const Patch& s, float* states, long long state, int row, int lane) {
#pragma unroll
    for (int q = 0; q < ROWS; q++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int key = 4 * (lane + half * LANES);
            const float* x = s[q] + 4 * half;
            if (row + q < HEAD && key < HEAD)
                *reinterpret_cast<Four*>(states + (state * HEAD + row + q) * HEAD + key) = {x[0], x[1], x[2], x[3]};
        }
}

// Sums each of COUNT numbers over the lanes that differ in the bits from LEAST to MASK, and spreads the sums over them:
// where COUNT can be halved, either half of the lanes keeps half of the numbers. The lane's share starts in x[0];
// returns which number that is.
template <int COUNT, int MASK, int LEAST> DEVICE int scatter_sum(float* x, int lane) {
    if constexpr (MASK < LEAST) {
        return 0;
    } else if constexpr (COUNT % 2 == 0) {
        constexpr int HALF = COUNT / 2;
        bool upper = lane & MASK;
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            float given = upper ? x[i] : x[i + HALF], kept = upper ? x[i + HALF] : x[i];
            x[i] = kept + shuffle_xor(given, MASK);
        }
        return (upper ? HALF : 0) + scatter_sum<HALF, MASK / 2, LEAST>(x, lane);
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i++) x[i] += shuffle_xor(x[i], MASK);
        return scatter_sum<COUNT, MASK / 2, LEAST>(x, lane);
    }
}

DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }

// Over WIDTH lanes: how many of COUNT sums a lane ends with, and how many lanes end with the same ones.
DEVICE constexpr int share(int count, int width) { return count / smaller(count & -count, width); }
DEVICE constexpr int copies(int count, int width) { return width / smaller(count & -count, width); }

// Every lane of a row gets the row's sums.
DEVICE void sum_rows(float (&x)[ROWS]) {
#pragma unroll
    for (int mask = 1; mask < LANES; mask *= 2)
#pragma unroll
        for (int q = 0; q < ROWS; q++) x[q] += shuffle_xor(x[q], mask);
}

// Rows' sums, stored by one lane each.
DEVICE void store_row_sums(float (&x)[ROWS], void* to, long long index, int row, int lane) {
    int first = row + scatter_sum<ROWS, LANES / 2, 1>(x, lane);
    if (lane % copies(ROWS, LANES) == 0) {
#pragma unroll
        for (int i = 0; i < share(ROWS, LANES); i++)
            if (first + i < HEAD) store(to, index + first + i, x[i]);
    }
}

DEVICE float dot(const float (&x)[KEYS], const float (&y)[KEYS]) {
    float even = x[0] * y[0], odd = x[1] * y[1];
#pragma unroll
    for (int j = 2; j < KEYS; j += 2) {
        even += x[j] * y[j];
        odd += x[j + 1] * y[j + 1];
    }
    return even + odd;
}

// One step forward; `removed` becomes S a.
DEVICE void advance(Patch& s, float (&removed)[ROWS], const float* w, const float* k, const float* a, const float* b,
                    const float* v, int lane) {
    float keys[KEYS];
    read_keys(keys, a, lane);
#pragma unroll
    for (int q = 0; q < ROWS; q++) removed[q] = dot(s[q], keys);
    sum_rows(removed);
    float decay[KEYS], added[KEYS];
    read_keys(decay, w, lane);
    read_keys(keys, b, lane);
    read_keys(added, k, lane);
#pragma unroll
    for (int q = 0; q < ROWS; q++)
#pragma unroll
        for (int j = 0; j < KEYS; j++) s[q][j] = s[q][j] * decay[j] + (removed[q] * keys[j] + v[q] * added[j]);
}

#endif
