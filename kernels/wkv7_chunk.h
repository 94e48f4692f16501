// What the forward and the backward of WKV-7 share: a chunk of steps as matrix products on tensor cores.
//
// N head size, C steps in a chunk (CHUNK), a block of 16 steps is what one tensor-core operand holds (BLOCKS = C / 16).
// kernels/README.md has the formulas. In brief, with P_t the product of the decays of the chunk up to step t, divided by
// that up to the chunk's middle, a chunk is opened by computing, in shared memory as bf16 (C, N),
//
//     R = r P_t    A = a P_{t-1}    K = k / P_t    B = b / P_t
//
// and the lower triangles of  R K^T, R B^T, A K^T  and  A B^T  (the `mix`), whose diagonal blocks of A B^T are replaced
// by (I - A B^T)^-1. After that, decay is nowhere but at the chunk's two ends (`edges`).
//
// Every product here is X Y^T of two operands of 16 rows and 16 columns that lie in registers in one and the same way.
// So a sum can be the next product's left or right operand with nothing moved, and a matrix read from shared memory can
// be either, itself or transposed. With fp32 inputs an operand is a sum of two bf16 numbers, and a product three.
//
// Defined by the host: HEAD_SIZE (64 or 128), CHUNK (16, 32 or 64), INPUT (0 bf16, 1 fp16, 2 fp32), SHARED_BYTES.

#include "primitives.h"

constexpr int N = HEAD_SIZE;
constexpr int SPAN = N > 64 ? 128 : 64;  // steps between the states that the forward keeps
constexpr int BLOCKS = CHUNK / 16;
constexpr int WARPS = N / 16;
constexpr int THREADS = 32 * WARPS;
constexpr int PARTS = INPUT == 2 ? 2 : 1;            // bf16 numbers that make up one number of an operand
constexpr int ELEMENT = INPUT == 2 ? 4 : 2;          // bytes of an input's element
constexpr int TILE = CHUNK * N * 2 * PARTS;          // bytes of a (C, N) matrix in shared memory
constexpr int SQUARE = 512 * PARTS;                  // bytes of a block of the mix
constexpr int MIX = BLOCKS * (BLOCKS + 1) / 2 * 4 * SQUARE;
constexpr int ROWS = CHUNK / 4;                      // steps that a warp prepares, for 64 of the keys
enum MixKind { READ_KEYS, READ_ERASED, ERASE_KEYS, ERASE_ERASED };  // R K^T, R B^T, A K^T, A B^T

// A thread, as one stage of the work knows it: hidden, so that addresses are worked out in the stage that needs them.
// Otherwise the compiler does that once, before the loop over chunks, and has no registers to keep them in.
struct Self {
    int lane, warp;
};

DEVICE Self self() { return {hide(thread_x() % 32), hide(thread_x() / 32)}; }

struct alignas(8) Pair {
    float x, y;
};

struct alignas(16) Quad {
    float at[4];
};

// A 16 x 16 operand. With g = lane / 4 and c = 2 (lane % 4), part[..][i] holds the columns c and c + 1, plus 8 for
// i = 2 and 3, of row g, plus 8 for i = 1 and 3.
struct Operand {
    unsigned part[PARTS][4];
};

// A 16 x 16 sum: half[h][i] is in column c + 8 h, plus one for odd i, and row g, plus 8 for i = 2 and 3.
struct Sum {
    float half[2][4];
};

DEVICE Pair unpack_bf16(unsigned pair) {
    return {bf16_to_float(static_cast<unsigned short>(pair)), bf16_to_float(static_cast<unsigned short>(pair >> 16))};
}

DEVICE void clear(Sum& sum) {
#pragma unroll
    for (int i = 0; i < 8; i++) sum.half[i / 4][i % 4] = 0;
}

// sum += X Y^T
DEVICE void multiply(Sum& sum, const Operand& x, const Operand& y) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int p = 0; p < 2 * PARTS - 1; p++) {
            const unsigned(&right)[4] = y.part[p == 1];
            const unsigned columns[2] = {right[h], right[h + 2]};
            mma_bf16(sum.half[h], x.part[p == 2], columns);
        }
    }
}

DEVICE Operand operand(const Sum& sum) {
    Operand x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float low = sum.half[i / 2][2 * (i % 2)], high = sum.half[i / 2][2 * (i % 2) + 1];
        x.part[0][i] = pack_bf16(low, high);
        if constexpr (PARTS == 2) {
            Pair rounded = unpack_bf16(x.part[0][i]);
            x.part[1][i] = pack_bf16(low - rounded.x, high - rounded.y);
        }
    }
    return x;
}

// Matrices in shared memory: 64 columns after another, in them row by row; a row is 128 bytes, for each part. The
// pieces of 16 bytes in a row are permuted by the row's number, so that 8 rows' pieces never meet in a bank.
template <int TALL> DEVICE int place(int row, int column) {
    return (column / 64 * TALL + row) * 128 * PARTS + ((column / 8 ^ row) & 7) * 16;
}

// The matrix of 16 rows and columns from (row, column), or its transpose.
template <int TALL> DEVICE Operand load(Self me, const unsigned char* matrix, int row, int column) {
        const unsigned char* source = matrix + place<TALL>(row + me.lane % 16, column + me.lane / 16 * 8);
    Operand x;
#pragma unroll
    for (int p = 0; p < PARTS; p++) ldmatrix_x4(x.part[p], source + 128 * p);
    return x;
}

template <int TALL> DEVICE Operand load_transposed(Self me, const unsigned char* matrix, int row, int column) {
        const unsigned char* source = matrix + place<TALL>(row + me.lane % 8 + me.lane / 16 * 8, column + me.lane / 8 % 2 * 8);
    Operand x;
#pragma unroll
    for (int p = 0; p < PARTS; p++) ldmatrix_x4_trans(x.part[p], source + 128 * p);
    return x;
}

template <int TALL> DEVICE void store(Self me, unsigned char* matrix, int row, int column, const Operand& x) {
    #pragma unroll
    for (int i = 0; i < 4 * PARTS; i++) {
        unsigned char* target = matrix + place<TALL>(row + me.lane / 4 + i % 2 * 8, column + i / 2 % 2 * 8);
        *reinterpret_cast<unsigned*>(target + i / 4 * 128 + me.lane % 4 * 4) = x.part[i / 4][i % 4];
    }
}

// Blocks of the mix: 16 x 16, a row is 32 bytes, one part after the other.
DEVICE unsigned char* block(unsigned char* mix, MixKind kind, int i, int j) {
    return mix + ((i * (i + 1) / 2 + j) * 4 + kind) * SQUARE;
}

DEVICE int place_in_block(int row, int column) { return row * 32 + ((column / 8 ^ row / 4) & 1) * 16; }

DEVICE Operand load_block(Self me, unsigned char* mix, MixKind kind, int i, int j) {
        const unsigned char* source = block(mix, kind, i, j) + place_in_block(me.lane % 16, me.lane / 16 * 8);
    Operand x;
#pragma unroll
    for (int p = 0; p < PARTS; p++) ldmatrix_x4(x.part[p], source + 512 * p);
    return x;
}

DEVICE Operand load_block_transposed(Self me, unsigned char* mix, MixKind kind, int i, int j) {
        const unsigned char* source = block(mix, kind, i, j) + place_in_block(me.lane % 8 + me.lane / 16 * 8, me.lane / 8 % 2 * 8);
    Operand x;
#pragma unroll
    for (int p = 0; p < PARTS; p++) ldmatrix_x4_trans(x.part[p], source + 512 * p);
    return x;
}

DEVICE void store_block(Self me, unsigned char* mix, MixKind kind, int i, int j, const Operand& x) {
    #pragma unroll
    for (int n = 0; n < 4 * PARTS; n++) {
        int at = place_in_block(me.lane / 4 + n % 2 * 8, n / 2 % 2 * 8) + n / 4 * 512 + me.lane % 4 * 4;
        *reinterpret_cast<unsigned*>(block(mix, kind, i, j) + at) = x.part[n / 4][n % 4];
    }
}

// Zeroes where a row sees a column that comes `gap` or more steps after it; LATER: sees only those.
template <bool LATER = false> DEVICE void cut(Self me, Sum& sum, int gap) {
    #pragma unroll
    for (int i = 0; i < 8; i++) {
        int row = me.lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + me.lane % 4 * 2 + i % 2;
        bool kept = LATER ? column >= row + gap : row >= column + gap;
        sum.half[i / 4][i % 4] = kept ? sum.half[i / 4][i % 4] : 0;
    }
}

// A state's 16 rows (values) from global memory in fp32, as N / 16 sums, and back.
DEVICE void load_state(Self me, Sum (&state)[N / 16], const float* source, int value) {
    #pragma unroll
    for (int i = 0; i < N / 4; i++) {
        int row = value + me.lane / 4 + i % 2 * 8, column = i / 2 * 8 + me.lane % 4 * 2;
        Pair pair = source ? *reinterpret_cast<const Pair*>(source + row * N + column) : Pair{0, 0};
        state[i / 4].half[i / 2 % 2][i % 2 * 2] = pair.x;
        state[i / 4].half[i / 2 % 2][i % 2 * 2 + 1] = pair.y;
    }
}

DEVICE void store_state(Self me, float* target, int value, const Sum (&state)[N / 16]) {
    #pragma unroll
    for (int i = 0; i < N / 4; i++) {
        int row = value + me.lane / 4 + i % 2 * 8, column = i / 2 * 8 + me.lane % 4 * 2;
        const float* pair = &state[i / 4].half[i / 2 % 2][i % 2 * 2];
        *reinterpret_cast<Pair*>(target + row * N + column) = {pair[0], pair[1]};
    }
}

// Multiplies 16 columns of a state, the keys from 16 `tile`, by the decays `edge` (N).
DEVICE void decay(Self me, Sum& sum, const float* edge, int tile) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        Pair by = *reinterpret_cast<const Pair*>(edge + tile * 16 + h * 8 + me.lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < 4; i++) sum.half[h][i] *= i % 2 ? by.y : by.x;
    }
}

// Where a chunk's steps lie in the inputs (.., H, N).
struct Steps {
    long long first;  // element of the first step's first key
    int stride;       // elements from one step to the next, H N
    int count;        // at most C
};

// A sequence's part of the tensors: its steps, and where its states are among those that the forward keeps.
struct Sequence {
    long long first;  // step
    int length;
    long long entry;
};

DEVICE Sequence find_sequence(int sequence, const int* cu_seqlens, int T) {
    if (cu_seqlens == nullptr) {
        return {static_cast<long long>(sequence) * T, T, static_cast<long long>(sequence) * ((T + SPAN - 1) / SPAN)};
    }
    int start = cu_seqlens[sequence];
    return {start, cu_seqlens[sequence + 1] - start, start / SPAN + sequence};
}

DEVICE Steps find_steps(const Sequence& sequence, int start, int H, int head) {
    int left = sequence.length - start;
    return {((sequence.first + start) * H + head) * N, H * N, left < CHUNK ? left : CHUNK};
}

struct Inputs {
    const void* r;
    const float* log_w;
    const void *k, *v, *a, *b;
};

// Asks for a chunk's rows of an input, which arrive as they are; steps past the end are zeros.
DEVICE void fetch(Self me, unsigned char* tile, const void* source, const Steps& steps) {
    constexpr int PIECES = N * ELEMENT / 16;  // in a row
    const unsigned char* start = static_cast<const unsigned char*>(source) + steps.first * ELEMENT;
    int stride = hide(steps.stride);
#pragma unroll
    for (int i = 0; i < CHUNK * PIECES / THREADS; i++) {
        int piece = i * THREADS + me.warp * 32 + me.lane;
        int row = piece / PIECES, column = piece % PIECES * 16 / ELEMENT;
        bool wanted = row < steps.count;
        const unsigned char* from = start + (wanted ? static_cast<long long>(row) * stride + column : 0) * ELEMENT;
        int at = (column / 64 * CHUNK + row) * 128 * PARTS;
        int within = column % 64 * ELEMENT / 16;  // pieces beyond the eighth keep their half of the row
        copy_async_16_or_zero(tile + at + ((within & 8) | ((within ^ row) & 7)) * 16, from, wanted);
    }
}

// Brings rows that will be fetched later into the second-level cache.
DEVICE void prefetch_rows(Self me, const void* source, const Steps& steps, int element) {
    const unsigned char* start = static_cast<const unsigned char*>(source) + steps.first * element;
    int sectors = N * element / 32;
    for (int i = me.warp * 32 + me.lane; i < steps.count * sectors; i += THREADS) {
        prefetch(start + static_cast<long long>(i / sectors) * steps.stride * element + i % sectors * 32);
    }
}

DEVICE void prefetch_inputs(Self me, const Inputs& inputs, const Steps& steps) {
    prefetch_rows(me, inputs.r, steps, ELEMENT);
    prefetch_rows(me, inputs.log_w, steps, 4);
    prefetch_rows(me, inputs.k, steps, ELEMENT);
    prefetch_rows(me, inputs.v, steps, ELEMENT);
    prefetch_rows(me, inputs.a, steps, ELEMENT);
    prefetch_rows(me, inputs.b, steps, ELEMENT);
}

// Writes 16 steps and 16 values of an output: in 16-bit types, a lane gathers 8 values of a step.
DEVICE void write_rows(Self me, void* target, long long first, int stride, int steps, const Sum& sum) {
    int column = me.lane % 4;
    if constexpr (INPUT == 2) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = me.lane / 4 + i % 2 * 8;
            float* row_start = static_cast<float*>(target) + first + static_cast<long long>(row) * stride + i / 2 * 8;
            const float* pair = &sum.half[i / 2][i % 2 * 2];
            if (row < steps) *reinterpret_cast<Pair*>(row_start + column * 2) = {pair[0], pair[1]};
        }
    } else {
        unsigned pairs[4];  // lane `column` of four has columns 2 column and + 1 of i = 2 (row half) + column half
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float* pair = &sum.half[i % 2][i / 2 * 2];
            pairs[i] = INPUT == 0 ? pack_bf16(pair[0], pair[1]) : pack_half(pair[0], pair[1]);
        }
#pragma unroll
        for (int bit = 1; bit < 4; bit *= 2) {  // transposes the four pairs of four lanes
            bool high = column & bit;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (i & bit) continue;
                unsigned other = shuffle_xor(high ? pairs[i] : pairs[i | bit], bit);
                pairs[i] = high ? other : pairs[i];
                pairs[i | bit] = high ? pairs[i | bit] : other;
            }
        }
        int row = me.lane / 4 + column / 2 * 8;
        long long at = first + static_cast<long long>(row) * stride + column % 2 * 8;
        if (row < steps) store_16(static_cast<unsigned short*>(target) + at, {pairs[0], pairs[1], pairs[2], pairs[3]});
    }
}

// For the elementwise work a thread has two neighbouring keys in a quarter of the chunk's steps.
DEVICE int own_key(Self me) { return me.warp % (N / 64) * 64 + me.lane * 2; }
DEVICE int own_quarter(Self me) { return me.warp / (N / 64); }
DEVICE int own_row(Self me) { return own_quarter(me) * ROWS; }

// A fetched row's elements at the thread's keys.
DEVICE Pair fetched(Self me, const unsigned char* tile, int row) {
    int key = own_key(me);
    const unsigned char* line = tile + (key / 64 * CHUNK + row) * 128 * PARTS;
    if constexpr (INPUT == 2) {
        int within = key % 64 / 4;
        return *reinterpret_cast<const Pair*>(line + ((within & 8) | ((within ^ row) & 7)) * 16 + key % 4 * 4);
    } else {
        unsigned pair = *reinterpret_cast<const unsigned*>(line + ((key / 8 ^ row) & 7) * 16 + key % 8 * 2);
        if constexpr (INPUT == 0) return unpack_bf16(pair);
        return {half_to_float(static_cast<unsigned short>(pair)), half_to_float(static_cast<unsigned short>(pair >> 16))};
    }
}

// An operand's elements there.
DEVICE Pair prepared(Self me, const unsigned char* tile, int row) {
    const unsigned char* at = tile + place<CHUNK>(row, own_key(me)) + own_key(me) % 8 * 2;
    Pair pair = unpack_bf16(*reinterpret_cast<const unsigned*>(at));
    if constexpr (PARTS == 2) {
        Pair rest = unpack_bf16(*reinterpret_cast<const unsigned*>(at + 128));
        pair = {pair.x + rest.x, pair.y + rest.y};
    }
    return pair;
}

DEVICE void prepare(Self me, unsigned char* tile, int row, Pair pair) {
    unsigned char* at = tile + place<CHUNK>(row, own_key(me)) + own_key(me) % 8 * 2;
    unsigned rounded = pack_bf16(pair.x, pair.y);
    *reinterpret_cast<unsigned*>(at) = rounded;
    if constexpr (PARTS == 2) {
        Pair high = unpack_bf16(rounded);
        *reinterpret_cast<unsigned*>(at + 128) = pack_bf16(pair.x - high.x, pair.y - high.y);
    }
}

// Turns a fetched tile into an operand without scaling it. bf16 is one already.
DEVICE void convert(Self me, unsigned char* tile) {
    if constexpr (INPUT == 0) return;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        Pair pair = fetched(me, tile, own_row(me) + i);
        if constexpr (PARTS == 2) warp_barrier();  // a row's parts lie where the row itself lay
        prepare(me, tile, own_row(me) + i, pair);
    }
}

// log_w summed over the thread's rows so far, for its two keys.
DEVICE void sum_decays(Self me, Pair (&sums)[ROWS], const float* log_w, const Steps& steps) {
    Pair sum = {0, 0};
    int stride = hide(steps.stride);
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (own_row(me) + i < steps.count) {
            long long at = steps.first + static_cast<long long>(own_row(me) + i) * stride + own_key(me);
            Pair w = *reinterpret_cast<const Pair*>(log_w + at);
            sum = {sum.x + w.x, sum.y + w.y};
        }
        sums[i] = sum;
    }
}

// A chunk in shared memory.
struct Chunk {
    unsigned char *R, *A, *K, *B, *V;  // tiles
    unsigned char* mix;
    float* quarters;  // (4, N) sums of log_w over a quarter of the chunk
    float* edges;     // (2, N) decay from the start to the middle, and from there to the end
};

constexpr int CHUNK_FLOATS = 6 * N;  // of quarters and edges

// Inverse of I - X for X strictly lower triangular, by substitution in fp32, in place of the block.
DEVICE void invert(Self me, unsigned char* mix, int i, const Sum& x) {
        float* columns = reinterpret_cast<float*>(block(mix, READ_KEYS, i, i));  // of the block pair (i, i), not yet filled
#pragma unroll
    for (int n = 0; n < 8; n++) {
        int row = me.lane / 4 + n % 4 / 2 * 8, column = n / 4 * 8 + me.lane % 4 * 2 + n % 2;
        columns[column * 16 + row] = x.half[n / 4][n % 4];
    }
    warp_barrier();
    float solved[16];  // column lane % 16 of the inverse
#pragma unroll
    for (int row = 0; row < 16; row++) solved[row] = row == me.lane % 16 ? 1.0f : 0.0f;
#pragma unroll
    for (int known = 0; known < 15; known++) {
#pragma unroll
        for (int row = (known + 1) / 4 * 4; row < 16; row += 4) {
            Quad below = *reinterpret_cast<const Quad*>(columns + known * 16 + row);
#pragma unroll
            for (int n = 0; n < 4; n++) {
                if (row + n > known) solved[row + n] += below.at[n] * solved[known];
            }
        }
    }
    warp_barrier();
    if (me.lane < 16) {
        unsigned char* target = block(mix, ERASE_ERASED, i, i) + me.lane % 8 * 2;
#pragma unroll
        for (int row = 0; row < 16; row++) {
            unsigned short rounded = float_to_bf16(solved[row]);
            *reinterpret_cast<unsigned short*>(target + place_in_block(row, me.lane)) = rounded;
            if constexpr (PARTS == 2) {
                unsigned short rest = float_to_bf16(solved[row] - bf16_to_float(rounded));
                *reinterpret_cast<unsigned short*>(target + place_in_block(row, me.lane) + 512) = rest;
            }
        }
    }
}

// The mix of the blocks of steps i and j <= i.
DEVICE void mix_blocks(Self me, const Chunk& chunk, int i, int j) {
    Sum sums[4];
#pragma unroll
    for (int kind = 0; kind < 4; kind++) clear(sums[kind]);
#pragma unroll
    for (int key = 0; key < N; key += 16) {
        Operand read = load<CHUNK>(me, chunk.R, 16 * i, key), erase = load<CHUNK>(me, chunk.A, 16 * i, key);
        Operand keys = load<CHUNK>(me, chunk.K, 16 * j, key), erased = load<CHUNK>(me, chunk.B, 16 * j, key);
        multiply(sums[READ_KEYS], read, keys);
        multiply(sums[READ_ERASED], read, erased);
        multiply(sums[ERASE_KEYS], erase, keys);
        multiply(sums[ERASE_ERASED], erase, erased);
    }
    if (i == j) {
#pragma unroll
        for (int kind = 0; kind < 4; kind++) cut(me, sums[kind], kind / 2);
        invert(me, chunk.mix, i, sums[ERASE_ERASED]);
    } else {
        store_block(me, chunk.mix, ERASE_ERASED, i, j, operand(sums[ERASE_ERASED]));
    }
#pragma unroll
    for (int kind = 0; kind < 3; kind++) {
        store_block(me, chunk.mix, static_cast<MixKind>(kind), i, j, operand(sums[kind]));
    }
}

// Fills the chunk, and `more` if there is a tile for that. All threads call it, when none reads the chunk before it any
// more. Returns what the sums of `sum_decays` lack to count from the chunk's middle.
DEVICE Pair open_chunk(
    Self me, const Chunk& chunk, const Inputs& inputs, const Steps& steps, unsigned char* tile = nullptr,
    const void* more = nullptr
) {
    if (tile) fetch(me, tile, more, steps);
    fetch(me, chunk.R, inputs.r, steps);
    fetch(me, chunk.A, inputs.a, steps);
    fetch(me, chunk.K, inputs.k, steps);
    fetch(me, chunk.B, inputs.b, steps);
    fetch(me, chunk.V, inputs.v, steps);
    copy_async_commit();
    Pair sums[ROWS];
    sum_decays(me, sums, inputs.log_w, steps);
    *reinterpret_cast<Pair*>(chunk.quarters + own_quarter(me) * N + own_key(me)) = sums[ROWS - 1];
    copy_async_wait<0>();
    barrier();

    Pair quarter[4];
#pragma unroll
    for (int i = 0; i < 4; i++) quarter[i] = *reinterpret_cast<const Pair*>(chunk.quarters + i * N + own_key(me));
    Pair start = {-quarter[0].x - quarter[1].x, -quarter[0].y - quarter[1].y};
    if (own_quarter(me) == 0) {
        Pair end = {quarter[2].x + quarter[3].x, quarter[2].y + quarter[3].y};
        *reinterpret_cast<Pair*>(chunk.edges + own_key(me)) = {exp_fast(-start.x), exp_fast(-start.y)};
        *reinterpret_cast<Pair*>(chunk.edges + N + own_key(me)) = {exp_fast(end.x), exp_fast(end.y)};
    }
#pragma unroll
    for (int i = 0; i < 3; i++) {
        if (i < own_quarter(me)) start = {start.x + quarter[i].x, start.y + quarter[i].y};
    }
    Pair before = {exp_fast(start.x), exp_fast(start.y)};
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int row = own_row(me) + i;
        Pair sum = {start.x + sums[i].x, start.y + sums[i].y};
        Pair now = {exp_fast(sum.x), exp_fast(sum.y)}, over = {exp_fast(-sum.x), exp_fast(-sum.y)};
        Pair r = fetched(me, chunk.R, row), a = fetched(me, chunk.A, row), k = fetched(me, chunk.K, row), b = fetched(me, chunk.B, row);
        if constexpr (PARTS == 2) warp_barrier();  // a row's parts lie where the row itself lay
        prepare(me, chunk.R, row, {r.x * now.x, r.y * now.y});
        prepare(me, chunk.A, row, {a.x * before.x, a.y * before.y});
        prepare(me, chunk.K, row, {k.x * over.x, k.y * over.y});
        prepare(me, chunk.B, row, {b.x * over.x, b.y * over.y});
        before = now;
    }
    convert(me, chunk.V);
    if (tile) convert(me, tile);
    barrier();

    for (int n = me.warp; n < BLOCKS * (BLOCKS + 1) / 2; n += WARPS) {  // the diagonal first: it takes longest
        int i = n, j = n;
        if (n >= BLOCKS) {
            i = 1, j = n - BLOCKS;
            while (j >= i) j -= i++;
        }
        mix_blocks(me, chunk, i, j);
    }
    barrier();
    return start;
}

// u_t = S_{t-1} a_t as (values, steps), 16 values of a warp, for every block of steps: (I - A B^T) u = A S^T + A K^T v by
// substitution. `values` are v of these values as (values, steps); `state` (values, keys) decayed to the chunk's middle.
// After each block, keep(i, inverse, known) is called: u of the block is also inverse known^T, as (steps, values).
template <class Keep>
DEVICE void solve(
    Self me, Operand (&erased)[BLOCKS], const Chunk& chunk, const Operand (&state)[N / 16], const Operand (&values)[BLOCKS],
    Keep keep
) {
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
        Sum known, sum;
        clear(known);
        clear(sum);
#pragma unroll
        for (int key = 0; key < N / 16; key++) multiply(known, state[key], load<CHUNK>(me, chunk.A, 16 * i, 16 * key));
#pragma unroll
        for (int j = 0; j <= i; j++) multiply(known, values[j], load_block(me, chunk.mix, ERASE_KEYS, i, j));
#pragma unroll
        for (int j = 0; j < i; j++) multiply(known, erased[j], load_block(me, chunk.mix, ERASE_ERASED, i, j));
        Operand inverse = load_block(me, chunk.mix, ERASE_ERASED, i, i);
        multiply(sum, operand(known), inverse);
        erased[i] = operand(sum);
        keep(i, inverse, operand(known));
    }
}

// The state after the chunk from the state decayed to its middle.
DEVICE void advance(
    Self me, Sum (&state)[N / 16], const Chunk& chunk, const Operand (&values)[BLOCKS], const Operand (&erased)[BLOCKS]
) {
#pragma unroll
    for (int key = 0; key < N / 16; key++) {
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
            multiply(state[key], values[i], load_transposed<CHUNK>(me, chunk.K, 16 * i, 16 * key));
            multiply(state[key], erased[i], load_transposed<CHUNK>(me, chunk.B, 16 * i, 16 * key));
        }
        decay(me, state[key], chunk.edges + N, key);
    }
}
