// What the forward and the backward of WKV-7 share: a chunk of steps as matrix products on tensor cores.
//
// N head size, C steps in a chunk (CHUNK), a block of 16 steps is what one tensor-core operand holds (BLOCKS = C / 16).
// kernels/README.md has the formulas. In brief, with P_t the product of the decays of the chunk up to step t, divided
// by that up to the chunk's middle, a chunk is opened by computing, in shared memory as bf16 (C, N),
//
//     R = r P_t    A = a P_{t-1}    K = k / P_t    B = b / P_t
//
// and the lower triangles of  R K^T, R B^T, A K^T  and  A B^T  (the `mix`), whose diagonal blocks of A B^T are replaced
// by (I - A B^T)^-1. After that, decay is nowhere but at the chunk's two ends (`edges`).
//
// Every product here is X Y^T of two operands of 16 rows and 16 columns. A sum lies over the lanes as operands do: it is
// the next product's left operand once rounded, or its right one with two registers exchanged, and a matrix in shared
// memory can be read as either, itself or transposed. With fp32 inputs an operand is a sum of two bf16 numbers, and a
// product three.
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
    unsigned lane, warp;
};

DEVICE Self self() {
    unsigned thread = thread_x();
    return {hide(thread % 32), hide(thread / 32)};
}

struct alignas(8) Pair {
    float x, y;
};

struct alignas(16) Quad {
    float at[4];
};

// 16 x 16 operands. With g = lane / 4 and c = 2 (lane % 4), part[..][i] of a left one holds the columns c and c + 1,
// plus 8 for i = 2 and 3, of row g, plus 8 for i = 1 and 3. A right one has the middle two exchanged: the tensor cores
// want neighbouring registers.
struct Left {
    unsigned part[PARTS][4];
};

struct Right {
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
DEVICE void multiply(Sum& sum, const Left& x, const Right& y) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int p = 0; p < 2 * PARTS - 1; p++) {
            const unsigned(&rows)[4] = y.part[p == 1];
            const unsigned half[2] = {rows[2 * h], rows[2 * h + 1]};
            mma_bf16(sum.half[h], x.part[p == 2], half);
        }
    }
}

DEVICE Left left(const Sum& sum) {
    Left x;
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

DEVICE Right right(const Left& x) {
    Right y;
#pragma unroll
    for (int i = 0; i < 4 * PARTS; i++) y.part[i / 4][i % 4] = x.part[i / 4][i % 2 * 2 + i / 2 % 2];
    return y;
}

// Matrices in shared memory: 64 columns after another, in them row by row; a row is 128 bytes, for each part. The
// pieces of 16 bytes in a row are permuted by the row's number, so that 8 rows' pieces never meet in a bank.
// `own_column` (0 or 8) is added to a column that is a multiple of 16.
template <int TALL> DEVICE unsigned place(unsigned row, unsigned column, unsigned own_column = 0) {
    unsigned piece = (own_column / 8 ^ row) & 7;  // of the lane: apart from the column, which is often a constant
    return (column / 64 * TALL + row) * 128 * PARTS + (piece * 16 ^ (column & 56) * 2);
}

// The places of the rows and columns that a lane names to ldmatrix for a left operand; for a right one, or the
// transpose of a left one, rows and columns change roles.
DEVICE unsigned plain_row(Self me) { return me.lane % 16; }
DEVICE unsigned plain_column(Self me) { return me.lane / 16 * 8; }
DEVICE unsigned turned_row(Self me) { return me.lane % 8 + me.lane / 16 * 8; }
DEVICE unsigned turned_column(Self me) { return me.lane / 8 % 2 * 8; }

// 16 rows and columns from (row, column) of a matrix, or their transpose.
template <int TALL> DEVICE Left load_left(Self me, const unsigned char* matrix, unsigned row, unsigned column) {
    const unsigned char* source = matrix + place<TALL>(row + plain_row(me), column, plain_column(me));
    Left x;
#pragma unroll
    for (int p = 0; p < PARTS; p++) ldmatrix_x4(x.part[p], source + 128 * p);
    return x;
}

template <int TALL> DEVICE Right load_right(Self me, const unsigned char* matrix, unsigned row, unsigned column) {
    const unsigned char* source = matrix + place<TALL>(row + turned_row(me), column, turned_column(me));
    Right x;
#pragma unroll
    for (int p = 0; p < PARTS; p++) ldmatrix_x4(x.part[p], source + 128 * p);
    return x;
}

template <int TALL> DEVICE Left load_left_turned(Self me, const unsigned char* matrix, unsigned row, unsigned column) {
    const unsigned char* source = matrix + place<TALL>(row + turned_row(me), column, turned_column(me));
    Left x;
#pragma unroll
    for (int p = 0; p < PARTS; p++) ldmatrix_x4_trans(x.part[p], source + 128 * p);
    return x;
}

template <int TALL>
DEVICE Right load_right_turned(Self me, const unsigned char* matrix, unsigned row, unsigned column) {
    const unsigned char* source = matrix + place<TALL>(row + plain_row(me), column, plain_column(me));
    Right x;
#pragma unroll
    for (int p = 0; p < PARTS; p++) ldmatrix_x4_trans(x.part[p], source + 128 * p);
    return x;
}

template <int TALL> DEVICE void store(Self me, unsigned char* matrix, unsigned row, unsigned column, const Left& x) {
    #pragma unroll
    for (int i = 0; i < 4 * PARTS; i++) {
        unsigned char* target = matrix + place<TALL>(row + me.lane / 4 + i % 2 * 8, column + i / 2 % 2 * 8);
        *reinterpret_cast<unsigned*>(target + i / 4 * 128 + me.lane % 4 * 4) = x.part[i / 4][i % 4];
    }
}

// Blocks of the mix: 16 x 16, a row is 32 bytes, one part after the other.
DEVICE unsigned char* block(unsigned char* mix, MixKind kind, unsigned i, unsigned j) {
    return mix + ((i * (i + 1) / 2 + j) * 4 + kind) * SQUARE;
}

DEVICE unsigned place_in_block(unsigned row, unsigned column) { return row * 32 + ((column / 8 ^ row / 4) & 1) * 16; }

DEVICE Left load_block_left(Self me, unsigned char* mix, MixKind kind, unsigned i, unsigned j) {
    const unsigned char* source = block(mix, kind, i, j) + place_in_block(plain_row(me), plain_column(me));
    Left x;
#pragma unroll
    for (int p = 0; p < PARTS; p++) ldmatrix_x4(x.part[p], source + 512 * p);
    return x;
}

DEVICE Right load_block_right(Self me, unsigned char* mix, MixKind kind, unsigned i, unsigned j) {
    const unsigned char* source = block(mix, kind, i, j) + place_in_block(turned_row(me), turned_column(me));
    Right x;
#pragma unroll
    for (int p = 0; p < PARTS; p++) ldmatrix_x4(x.part[p], source + 512 * p);
    return x;
}

DEVICE Left load_block_left_turned(Self me, unsigned char* mix, MixKind kind, unsigned i, unsigned j) {
    const unsigned char* source = block(mix, kind, i, j) + place_in_block(turned_row(me), turned_column(me));
    Left x;
#pragma unroll
    for (int p = 0; p < PARTS; p++) ldmatrix_x4_trans(x.part[p], source + 512 * p);
    return x;
}

DEVICE Right load_block_right_turned(Self me, unsigned char* mix, MixKind kind, unsigned i, unsigned j) {
    const unsigned char* source = block(mix, kind, i, j) + place_in_block(plain_row(me), plain_column(me));
    Right x;
#pragma unroll
    for (int p = 0; p < PARTS; p++) ldmatrix_x4_trans(x.part[p], source + 512 * p);
    return x;
}

DEVICE void store_block(Self me, unsigned char* mix, MixKind kind, unsigned i, unsigned j, const Left& x) {
    #pragma unroll
    for (int n = 0; n < 4 * PARTS; n++) {
        unsigned at = place_in_block(me.lane / 4 + n % 2 * 8, n / 2 % 2 * 8) + n / 4 * 512 + me.lane % 4 * 4;
        *reinterpret_cast<unsigned*>(block(mix, kind, i, j) + at) = x.part[n / 4][n % 4];
    }
}

// Zeroes where a row sees a column that comes `gap` or more steps after it; LATER: sees only those.
template <bool LATER = false> DEVICE void cut(Self me, Sum& sum, unsigned gap) {
    #pragma unroll
    for (int i = 0; i < 8; i++) {
        unsigned row = me.lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + me.lane % 4 * 2 + i % 2;
        bool kept = LATER ? column >= row + gap : row >= column + gap;
        sum.half[i / 4][i % 4] = kept ? sum.half[i / 4][i % 4] : 0;
    }
}

// A state's 16 rows (values) from global memory in fp32, as N / 16 sums, and back.
DEVICE void load_state(Self me, Sum (&state)[N / 16], const float* source, unsigned value) {
    #pragma unroll
    for (int i = 0; i < N / 4; i++) {
        unsigned row = value + me.lane / 4 + i % 2 * 8, column = i / 2 * 8 + me.lane % 4 * 2;
        Pair pair = source ? *reinterpret_cast<const Pair*>(source + row * N + column) : Pair{0, 0};
        state[i / 4].half[i / 2 % 2][i % 2 * 2] = pair.x;
        state[i / 4].half[i / 2 % 2][i % 2 * 2 + 1] = pair.y;
    }
}

DEVICE void store_state(Self me, float* target, unsigned value, const Sum (&state)[N / 16]) {
    #pragma unroll
    for (int i = 0; i < N / 4; i++) {
        unsigned row = value + me.lane / 4 + i % 2 * 8, column = i / 2 * 8 + me.lane % 4 * 2;
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
    long long stride;  // elements from one step to the next, H N
    unsigned count;   // at most C
};

// A sequence's part of the tensors: its steps, and where its states are among those that the forward keeps.
struct Sequence {
    int first, length;  // steps
    int entry;
};

DEVICE Sequence find_sequence(int sequence, const int* cu_seqlens, int T) {
    if (cu_seqlens == nullptr) return {sequence * T, T, sequence * ((T + SPAN - 1) / SPAN)};
    int start = cu_seqlens[sequence];
    return {start, cu_seqlens[sequence + 1] - start, start / SPAN + sequence};
}

DEVICE Steps find_steps(const Sequence& sequence, int start, int H, int head) {
    int left = sequence.length - start;
    long long step = sequence.first + hide(start);
    return {(step * H + head) * N, hide(H * N), static_cast<unsigned>(left < CHUNK ? left : CHUNK)};
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
#pragma unroll
    for (int i = 0; i < CHUNK * PIECES / THREADS; i++) {
        unsigned piece = i * THREADS + me.warp * 32 + me.lane;
        unsigned row = piece / PIECES, column = piece % PIECES * (16 / ELEMENT);
        bool wanted = row < steps.count;
        const unsigned char* from = start + (wanted ? row * steps.stride + column : 0) * ELEMENT;
        unsigned at = (column / 64 * CHUNK + row) * 128 * PARTS;
        unsigned within = column % 64 * ELEMENT / 16;  // pieces beyond the eighth keep their half of the row
        copy_async_16_or_zero(tile + at + ((within & 8) | ((within ^ row) & 7)) * 16, from, wanted);
    }
}

// Brings rows that will be fetched later into the second-level cache, 32 bytes at a time.
template <int BYTES> DEVICE void prefetch_rows(Self me, const void* source, const Steps& steps) {
    constexpr int SECTORS = N * BYTES / 32;  // in a row
    const unsigned char* start = static_cast<const unsigned char*>(source) + steps.first * BYTES;
#pragma unroll
    for (int i = 0; i < CHUNK * SECTORS / THREADS; i++) {
        unsigned sector = i * THREADS + me.warp * 32 + me.lane, row = sector / SECTORS;
        if (row < steps.count) prefetch(start + row * steps.stride * BYTES + sector % SECTORS * 32);
    }
}

DEVICE void prefetch_inputs(Self me, const Inputs& inputs, const Steps& steps) {
    prefetch_rows<ELEMENT>(me, inputs.r, steps);
    prefetch_rows<4>(me, inputs.log_w, steps);
    prefetch_rows<ELEMENT>(me, inputs.k, steps);
    prefetch_rows<ELEMENT>(me, inputs.v, steps);
    prefetch_rows<ELEMENT>(me, inputs.a, steps);
    prefetch_rows<ELEMENT>(me, inputs.b, steps);
}

// Writes 16 steps and 16 values of an output: in 16-bit types, a lane gathers 8 values of a step.
DEVICE void write_rows(Self me, void* target, long long first, long long stride, unsigned steps, const Sum& sum) {
    unsigned column = me.lane % 4;
    if constexpr (INPUT == 2) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned row = me.lane / 4 + i % 2 * 8;
            float* row_start = static_cast<float*>(target) + first + row * stride + i / 2 * 8;
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
        unsigned row = me.lane / 4 + column / 2 * 8;
        long long at = first + row * stride + column % 2 * 8;
        if (row < steps) store_16(static_cast<unsigned short*>(target) + at, {pairs[0], pairs[1], pairs[2], pairs[3]});
    }
}

// For the elementwise work a thread has two neighbouring keys in a quarter of the chunk's steps.
DEVICE unsigned own_key(Self me) { return me.warp % (N / 64) * 64 + me.lane * 2; }
DEVICE unsigned own_quarter(Self me) { return me.warp / (N / 64); }
DEVICE unsigned own_row(Self me) { return own_quarter(me) * ROWS; }

// A fetched row's elements at the thread's keys.
DEVICE Pair fetched(Self me, const unsigned char* tile, unsigned row) {
    unsigned key = own_key(me);
    const unsigned char* line = tile + (key / 64 * CHUNK + row) * 128 * PARTS;
    if constexpr (INPUT == 2) {
        unsigned within = key % 64 / 4;
        return *reinterpret_cast<const Pair*>(line + ((within & 8) | ((within ^ row) & 7)) * 16 + key % 4 * 4);
    } else {
        unsigned pair = *reinterpret_cast<const unsigned*>(line + ((key / 8 ^ row) & 7) * 16 + key % 8 * 2);
        if constexpr (INPUT == 0) return unpack_bf16(pair);
        unsigned short low = static_cast<unsigned short>(pair), high = static_cast<unsigned short>(pair >> 16);
        return {half_to_float(low), half_to_float(high)};
    }
}

// An operand's elements there.
DEVICE Pair prepared(Self me, const unsigned char* tile, unsigned row) {
    const unsigned char* at = tile + place<CHUNK>(row, own_key(me)) + own_key(me) % 8 * 2;
    Pair pair = unpack_bf16(*reinterpret_cast<const unsigned*>(at));
    if constexpr (PARTS == 2) {
        Pair rest = unpack_bf16(*reinterpret_cast<const unsigned*>(at + 128));
        pair = {pair.x + rest.x, pair.y + rest.y};
    }
    return pair;
}

DEVICE void prepare(Self me, unsigned char* tile, unsigned row, Pair pair) {
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

// `sum` and log_w summed over the thread's rows so far, for its two keys.
DEVICE void sum_decays(Self me, Pair (&sums)[ROWS], Pair sum, const float* log_w, const Steps& steps) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (own_row(me) + i < steps.count) {
            long long at = steps.first + (own_row(me) + i) * steps.stride + own_key(me);
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

// Inverse of I - X for X strictly lower triangular, by substitution in fp32, in place of the block. X is rounded as the
// other operands are: on repeated keys it has the numbers of A K^T, and what cancels must meet them again.
DEVICE void invert(Self me, unsigned char* mix, unsigned i, const Left& x) {
    float* columns = reinterpret_cast<float*>(block(mix, READ_KEYS, i, i));  // not filled yet
#pragma unroll
    for (int n = 0; n < 4; n++) {
        Pair pair = unpack_bf16(x.part[0][n]);
        if constexpr (PARTS == 2) {
            Pair rest = unpack_bf16(x.part[1][n]);
            pair = {pair.x + rest.x, pair.y + rest.y};
        }
        unsigned row = me.lane / 4 + n % 2 * 8, column = n / 2 * 8 + me.lane % 4 * 2;
        columns[column * 16 + row] = pair.x;
        columns[(column + 1) * 16 + row] = pair.y;
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
DEVICE void mix_blocks(Self me, const Chunk& chunk, unsigned i, unsigned j) {
    Sum sums[4];
#pragma unroll
    for (int kind = 0; kind < 4; kind++) clear(sums[kind]);
#pragma unroll
    for (int key = 0; key < N; key += 16) {
        Left read = load_left<CHUNK>(me, chunk.R, 16 * i, key), erase = load_left<CHUNK>(me, chunk.A, 16 * i, key);
        Right keys = load_right<CHUNK>(me, chunk.K, 16 * j, key), erased = load_right<CHUNK>(me, chunk.B, 16 * j, key);
        multiply(sums[READ_KEYS], read, keys);
        multiply(sums[READ_ERASED], read, erased);
        multiply(sums[ERASE_KEYS], erase, keys);
        multiply(sums[ERASE_ERASED], erase, erased);
    }
    if (i == j) {
#pragma unroll
        for (int kind = 0; kind < 4; kind++) cut(me, sums[kind], kind / 2);
        invert(me, chunk.mix, i, left(sums[ERASE_ERASED]));
    } else {
        store_block(me, chunk.mix, ERASE_ERASED, i, j, left(sums[ERASE_ERASED]));
    }
#pragma unroll
    for (int kind = 0; kind < 3; kind++) {
        store_block(me, chunk.mix, static_cast<MixKind>(kind), i, j, left(sums[kind]));
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
    sum_decays(me, sums, Pair{0, 0}, inputs.log_w, steps);
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
        unsigned row = own_row(me) + i;
        Pair sum = {start.x + sums[i].x, start.y + sums[i].y};
        Pair now = {exp_fast(sum.x), exp_fast(sum.y)}, over = {exp_fast(-sum.x), exp_fast(-sum.y)};
        Pair r = fetched(me, chunk.R, row), a = fetched(me, chunk.A, row);
        Pair k = fetched(me, chunk.K, row), b = fetched(me, chunk.B, row);
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

    for (unsigned n = me.warp; n < BLOCKS * (BLOCKS + 1) / 2; n += WARPS) {  // the diagonal first: it takes longest
        unsigned i = n, j = n;
        if (n >= BLOCKS) {
            i = 1, j = n - BLOCKS;
            while (j >= i) j -= i++;
        }
        mix_blocks(me, chunk, i, j);
    }
    barrier();
    return start;
}

// u_t = S_{t-1} a_t as (values, steps), 16 values of a warp, for every block of steps: (I - A B^T) u = A S^T + A K^T v
// by substitution. `values` are v of these values as (values, steps); `state` (values, keys) decayed to the chunk's
// middle. After each block, keep(i, known) is called: u of the block is also known times the inverse, transposed.
template <class Keep>
DEVICE void solve(
    Self me, Left (&erased)[BLOCKS], const Chunk& chunk, const Left (&state)[N / 16], const Left (&values)[BLOCKS],
    Keep keep
) {
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
        Sum known, sum;
        clear(known);
        clear(sum);
#pragma unroll
        for (int key = 0; key < N / 16; key++) {
            multiply(known, state[key], load_right<CHUNK>(me, chunk.A, 16 * i, 16 * key));
        }
#pragma unroll
        for (int j = 0; j <= i; j++) multiply(known, values[j], load_block_right(me, chunk.mix, ERASE_KEYS, i, j));
#pragma unroll
        for (int j = 0; j < i; j++) multiply(known, erased[j], load_block_right(me, chunk.mix, ERASE_ERASED, i, j));
        multiply(sum, left(known), load_block_right(me, chunk.mix, ERASE_ERASED, i, i));
        erased[i] = left(sum);
        keep(i, left(known));
    }
}

// The state after the chunk from the state decayed to its middle.
DEVICE void advance(
    Self me, Sum (&state)[N / 16], const Chunk& chunk, const Left (&values)[BLOCKS], const Left (&erased)[BLOCKS]
) {
#pragma unroll
    for (int key = 0; key < N / 16; key++) {
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
            multiply(state[key], values[i], load_right_turned<CHUNK>(me, chunk.K, 16 * i, 16 * key));
            multiply(state[key], erased[i], load_right_turned<CHUNK>(me, chunk.B, 16 * i, 16 * key));
        }
        decay(me, state[key], chunk.edges + N, key);
    }
}
