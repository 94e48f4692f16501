// The channel mix's second product for few vectors, y = W^T h with W as (F, D): most h are zeros (squared ReLU), and a
// row of W is read only where an h of it is not.
//
// B vectors, D width, F hidden width. Fixed when compiled: NUMBER, the type of weights (0 fp32, 1 bf16, 2 fp16); INT8,
// 1 for 8-bit integers with a scale (bf16) for every 64 hidden units of an output, (F / 64, D); WIDTH (D), a multiple
// of 64; HIDDEN (F); SLICE, the hidden units that a block takes, a multiple of 1024 up to 8192; BATCH, 1, 2, 4 or 8, at
// least the vectors that a block takes.

#include "numbers.h"

constexpr int THREADS = 256;
constexpr int GROUP = 64;                                           // hidden units of a scale
constexpr int ELEMENTS = 16 / static_cast<int>(sizeof(Stored<NUMBER>));  // in 16 bytes
constexpr int COLUMNS = 64;                             // of W that a block takes
constexpr int WIDE = INT8 ? 16 : ELEMENTS;              // of them that a lane takes: 16 bytes
constexpr int LANES = COLUMNS / WIDE;                   // that share a row of W
constexpr int ROWS = THREADS / LANES;                   // of W that a block reads at once
constexpr int DEPTH = BATCH > 2 ? 4 : 8;                // of them in flight for each lane
constexpr int UNITS = SLICE / THREADS;                  // hidden units that a thread looks at
static_assert(UNITS % 4 == 0 && UNITS <= 32 && SLICE % THREADS == 0 && WIDTH % COLUMNS == 0 && HIDDEN % 4 == 0, "");

// The places in [0, SLICE) where any of the vectors is not zero, in order. Returns their number.
DEVICE int list_live(unsigned short* list, const float* hidden, int begin, int vectors) {
    SHARED int counts[THREADS / 32];
    int lane = thread_x() % 32, warp = thread_x() / 32, first = thread_x() * UNITS;
    unsigned live = 0;
    int count = 0;
    for (int n = 0; n < vectors; n++) {
#pragma unroll
        for (int i = 0; i < UNITS; i += 4) {
            if (begin + first + i >= HIDDEN) continue;
            Floats<4> h = load<0, 4>(hidden, static_cast<long long>(n) * HIDDEN + begin + first + i);
#pragma unroll
            for (int c = 0; c < 4; c++) live |= static_cast<unsigned>(h.x[c] != 0.0f) << (i + c);
        }
    }
    for (int i = 0; i < UNITS; i++) count += live >> i & 1u;
    int upto = count;  // with those of the lanes before
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int before = shuffle_up(upto, step);
        if (lane >= step) upto += before;
    }
    if (lane == 31) counts[warp] = upto;
    barrier();
    int place = upto - count, total = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) {
        if (i < warp) place += counts[i];
        total += counts[i];
    }
    for (int i = 0; i < UNITS; i++)
        if (live >> i & 1u) list[place++] = static_cast<unsigned short>(first + i);
    barrier();
    return total;
}

DEVICE float weight(const Vector4& v, int i) {
#if INT8
    return byte_to_float(part(v, i / 4), i % 4);
#elif NUMBER == 0
    return bits_to_float(part(v, i));
#else
    return Number<NUMBER>::widen(static_cast<unsigned short>(part(v, i / 2) >> (16 * (i % 2))));
#endif
}

// products (F / SLICE rounded up, B, D): the sums over a slice of the hidden units each. hidden (B, F) fp32, w (F, D),
// scales (F / 64, D) or null. Grid (D / 64, slices, B / 8 rounded up).
KERNEL(THREADS, 1)
void value_product(const float* hidden, const void* w, const unsigned short* scales, float* products, int batch) {
    SHARED unsigned short list[SLICE];
    int begin = block_y() * SLICE, first_vector = block_z() * 8;
    int vectors = batch - first_vector < BATCH ? batch - first_vector : BATCH;
    hidden += static_cast<long long>(first_vector) * HIDDEN;
    int live = list_live(list, hidden, begin, vectors);

    int column = block_x() * COLUMNS + thread_x() % LANES * WIDE, group = thread_x() / LANES;
    constexpr int BYTES = 16 / WIDE;
    float sum[BATCH][WIDE] = {};
    for (int first = group; first < live; first += ROWS * DEPTH) {
        Vector4 held[DEPTH];
        int unit[DEPTH];
        float h[DEPTH][BATCH];
#pragma unroll
        for (int j = 0; j < DEPTH; j++) {
            bool wanted = first + j * ROWS < live;
            unit[j] = begin + (wanted ? list[first + j * ROWS] : 0);
            long long byte = (static_cast<long long>(unit[j]) * WIDTH + column) * BYTES;
            held[j] = Vector4{0, 0, 0, 0};
            if (wanted) held[j] = load_16_streaming(static_cast<const unsigned char*>(w) + byte);
#pragma unroll
            for (int n = 0; n < BATCH; n++)
                h[j][n] = wanted && n < vectors ? hidden[static_cast<long long>(n) * HIDDEN + unit[j]] : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < DEPTH; j++) {
            float row[WIDE];
#pragma unroll
            for (int i = 0; i < WIDE; i++) row[i] = weight(held[j], i);
#if INT8
#pragma unroll
            for (int i = 0; i < WIDE; i += 8) {
                Floats<8> scale = load<1, 8>(scales, static_cast<long long>(unit[j] / GROUP) * WIDTH + column + i);
#pragma unroll
                for (int c = 0; c < 8; c++) row[i + c] *= scale.x[c];
            }
#endif
#pragma unroll
            for (int n = 0; n < BATCH; n++) {
#pragma unroll
                for (int i = 0; i < WIDE; i++) sum[n][i] += h[j][n] * row[i];
            }
        }
    }

    SHARED float sums[THREADS / 32][BATCH][COLUMNS];
#pragma unroll
    for (int n = 0; n < BATCH; n++) {
#pragma unroll
        for (int i = 0; i < WIDE; i++) {
            float total = sum[n][i];
#pragma unroll
            for (int mask = LANES; mask < 32; mask *= 2) total += shuffle_xor(total, mask);
            if (thread_x() % 32 < LANES) sums[thread_x() / 32][n][thread_x() % LANES * WIDE + i] = total;
        }
    }
    barrier();
    for (int i = thread_x(); i < BATCH * COLUMNS; i += THREADS) {
        int n = i / COLUMNS;
        if (n >= vectors) continue;
        float total = 0.0f;
#pragma unroll
        for (int warp = 0; warp < THREADS / 32; warp++) total += sums[warp][n][i % COLUMNS];
        long long row = static_cast<long long>(block_y()) * batch + first_vector + n;
        products[row * WIDTH + block_x() * COLUMNS + i % COLUMNS] = total;
    }
}
