// WKV-7 backward, a chunk at a time on tensor cores, from the states that the forward kept: see wkv7_chunk.h.
//
// A block of threads takes one head of one sequence, from the last span to the first. Each of its N / 16 warps carries
// 16 rows (values) of the state's gradient in registers, in fp32, as the forward carries the state. Where a span is
// more than one chunk, a forward pass over the span comes first and leaves the state before each chunk in `scratch`.
//
// In a chunk, a warp first finds its 16 values' part of u and of the gradients of y's and u's sums: rows of U and dZ,
// all steps. After a barrier, each warp takes 16 steps and some keys instead, and gathers the gradients of r, a, k and
// b: those of r and a from the state before the chunk and what was written in it up to the step, those of k and b from
// the gradient of the state after the chunk and what was read in it from the step on: the same sums with the roles
// exchanged.
//
// The gradient of log_w needs no products of its own. With x dx for the gradient of the logarithm of x, a step's is the
// one of the chunk's first state, plus k dk + b db - r dr - a da of the steps before it, less its own a da. The factors
// and sums in it are the very numbers that the products took, so what should cancel does.

#include "wkv7_chunk.h"

constexpr int KEYS = 16 * BLOCKS;                   // of a warp that gathers: N / KEYS warps take the same 16 steps
constexpr int STATE_TILE = SLICE * N * 2 * PARTS;   // bytes of SLICE rows of a state in shared memory
constexpr int STAGE = CHUNK * N * 4;                // bytes of a (C, N) matrix in fp32
constexpr int SHARED_WORK = MIX > 2 * STATE_TILE + STAGE ? MIX : 2 * STATE_TILE + STAGE;
constexpr bool OWN_ROWS = KEYS == N && N == 64;     // a warp gathers for the very steps it prepares

static_assert(8 * TILE + SHARED_WORK + 4 * CHUNK_FLOATS + 4 * WARPS * N == SHARED_BYTES);
static_assert(SPAN % CHUNK == 0 && N % SLICE == 0);

// A chunk and what the backward adds to it; the mix and what follows it here are not needed at the same time.
struct Both : Chunk {
    unsigned char *U, *DY, *DZ;   // tiles
    unsigned char *before, *after;  // SLICE rows of the state before the chunk, and of the gradient of that after it
    float* stage;                 // (C, N)
    float* entering;              // (WARPS, N) sums over 16 values of the state before the chunk times its gradient
};

// Two matrices (C, N) or four 16 x 16 blocks at a time: [0] of reads or keys, [1] of erasures or erased.
typedef Sum Gathered[2][KEYS / 16];

struct Sides {
    unsigned char *rows[2], *columns[2], *factors[2];
};

DEVICE unsigned gathered_block(Self me) { return me.warp % BLOCKS; }
DEVICE unsigned gathered_key(Self me) { return me.warp / BLOCKS * KEYS; }

// sums[x] += rows[x] state, the values from `value`
DEVICE void gather_state(Self me, Gathered& sums, const Sides& sides, const unsigned char* rows, unsigned value) {
#pragma unroll
    for (int i = 0; i < SLICE; i += 16) {
        Left own[2];
#pragma unroll
        for (int x = 0; x < 2; x++) own[x] = load_left<CHUNK>(me, sides.rows[x], 16 * gathered_block(me), value + i);
#pragma unroll
        for (int key = 0; key < KEYS / 16; key++) {
            Right row = load_right_turned<SLICE>(me, rows, i, gathered_key(me) + 16 * key);
#pragma unroll
            for (int x = 0; x < 2; x++) multiply(sums[x][key], own[x], row);
        }
    }
}

// sums[x] += (rows[x] columns[y]^T, cut) factors[y]; LATER: of what comes at or after the row's step, else up to it.
template <bool LATER> DEVICE void gather_steps(Self me, Gathered& sums, const Sides& sides) {
    unsigned own = gathered_block(me);
    for (unsigned other = LATER ? own : 0; other < (LATER ? BLOCKS : own + 1); other++) {
        Sum mixed[2][2];
#pragma unroll
        for (int i = 0; i < 4; i++) clear(mixed[i / 2][i % 2]);
#pragma unroll
        for (int value = 0; value < N; value += 16) {
            Left rows[2];
            Right columns[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                rows[i] = load_left<CHUNK>(me, sides.rows[i], 16 * own, value);
                columns[i] = load_right<CHUNK>(me, sides.columns[i], 16 * other, value);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) multiply(mixed[i / 2][i % 2], rows[i / 2], columns[i % 2]);
        }
        if (own == other) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                cut<LATER>(me, mixed[i / 2][i % 2], LATER ? i % 2 : i / 2);  // a reads before its step
            }
        }
        Left mix[4];
#pragma unroll
        for (int i = 0; i < 4; i++) mix[i] = left(mixed[i / 2][i % 2]);
#pragma unroll
        for (int key = 0; key < KEYS / 16; key++) {
#pragma unroll
            for (int y = 0; y < 2; y++) {
                Right factor = load_right_turned<CHUNK>(me, sides.factors[y], 16 * other, gathered_key(me) + 16 * key);
                multiply(sums[0][key], mix[y], factor);
                multiply(sums[1][key], mix[2 + y], factor);
            }
        }
    }
}

// Between a write and a read of the stage.
DEVICE void stage_barrier() {
    if constexpr (OWN_ROWS) warp_barrier();
    else barrier();
}

// A pair of keys has its place in a row of the stage permuted by the row: 4 rows' 4 pairs do not meet in a bank.
DEVICE Pair& staged(float* stage, unsigned row, unsigned key) {
    return *reinterpret_cast<Pair*>(stage + row * N + (key ^ (row & 3) * 8));
}

DEVICE void put(Self me, float* stage, const Sum (&sums)[KEYS / 16]) {
        stage_barrier();
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) {
        unsigned row = 16 * gathered_block(me) + me.lane / 4 + i % 2 * 8;
        unsigned key = gathered_key(me) + i / 2 * 8 + me.lane % 4 * 2;
        const float* pair = &sums[i / 4].half[i / 2 % 2][i % 2 * 2];
        staged(stage, row, key) = {pair[0], pair[1]};
    }
    stage_barrier();
}

DEVICE void write_pair(void* target, long long at, Pair pair) {
    if constexpr (INPUT == 2) {
        store_8(static_cast<float*>(target) + at, pair.x, pair.y);
    } else {
        unsigned packed = INPUT == 0 ? pack_bf16(pair.x, pair.y) : pack_half(pair.x, pair.y);
        *reinterpret_cast<unsigned*>(static_cast<unsigned short*>(target) + at) = packed;
    }
}

// Writes a gradient of a chunk: what was gathered, times the factor between the input and the tile made from it, which
// is e^(sign * logarithm). Subtracts sign * tile * gathered from `flow`.
DEVICE void write_gathered(
    Self me, void* target, const Both& chunk, const Steps& steps, const Sum (&sums)[KEYS / 16],
    const unsigned char* tile, const Pair (&logarithms)[ROWS], float sign, Pair (&flow)[ROWS]
) {
    put(me, chunk.stage, sums);
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        unsigned row = own_row(me) + i;
        Pair sum = staged(chunk.stage, row, own_key(me)), factor = prepared(me, tile, row);
        flow[i].x -= sign * factor.x * sum.x;
        flow[i].y -= sign * factor.y * sum.y;
        sum.x *= exp_fast(sign * logarithms[i].x);
        sum.y *= exp_fast(sign * logarithms[i].y);
        if (row < steps.count) {
            write_pair(target, steps.first + row * steps.stride + own_key(me), sum);
        }
    }
}

// Adds up the 16 rows of a state times its gradient, into 16 keys of `sums`.
DEVICE void enter(Self me, float* sums, const Left& state, const Sum& gradient) {
    #pragma unroll
    for (int h = 0; h < 2; h++) {
        Pair sum = {0, 0};
#pragma unroll
        for (int i = 0; i < 2 * PARTS; i++) {
            Pair pair = unpack_bf16(state.part[i / 2][2 * h + i % 2]);
            sum.x += pair.x * gradient.half[h][i % 2 * 2];
            sum.y += pair.y * gradient.half[h][i % 2 * 2 + 1];
        }
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
            sum = {sum.x + shuffle_xor(sum.x, mask), sum.y + shuffle_xor(sum.y, mask)};
        }
        if (me.lane < 4) *reinterpret_cast<Pair*>(sums + h * 8 + me.lane * 2) = sum;
    }
}

struct Gradients {
    void* r;
    float* log_w;
    void *k, *v, *a, *b;
};

// One chunk: `state` (N, N) before it in global memory; carried: the gradient of the state after it, then before it.
DEVICE void differentiate(
    Both& chunk, const Inputs& inputs, const void* d_y, const float* state, const Gradients& gradients,
    Steps steps, Sum (&carried)[N / 16]
) {
    Pair start = open_chunk(self(), chunk, inputs, steps, chunk.DY, d_y);
    Self me = self();
    unsigned value = me.warp * 16;
    {
        Left values[BLOCKS], erased[BLOCKS], middle[N / 16];
        Sum before[N / 16];
        load_state(me, before, state, value);
#pragma unroll
        for (int key = 0; key < N / 16; key++) {
            decay(me, before[key], chunk.edges, key);
            middle[key] = left(before[key]);
        }
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) values[i] = load_left_turned<CHUNK>(me, chunk.V, 16 * i, value);
        solve(me, erased, chunk, middle, values, [&](int i, const Left& known) {
            Sum sum;
            clear(sum);
            multiply(sum, load_block_left(me, chunk.mix, ERASE_ERASED, i, i), right(known));
            store<CHUNK>(me, chunk.U, 16 * i, value, left(sum));
        });
    }
    {
        Left after[N / 16], d_y_values[BLOCKS], d_z_values[BLOCKS];
#pragma unroll
        for (int key = 0; key < N / 16; key++) {
            decay(me, carried[key], chunk.edges + N, key);
            after[key] = left(carried[key]);
        }
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) d_y_values[i] = load_left_turned<CHUNK>(me, chunk.DY, 16 * i, value);
#pragma unroll
        for (int j = BLOCKS - 1; j >= 0; j--) {
            Sum d_u, d_z, d_z_rows, d_v;
            clear(d_u);
            clear(d_z);
            clear(d_z_rows);
            clear(d_v);
#pragma unroll
            for (int key = 0; key < N / 16; key++) {
                multiply(d_u, after[key], load_right<CHUNK>(me, chunk.B, 16 * j, 16 * key));
                multiply(d_v, load_left<CHUNK>(me, chunk.K, 16 * j, 16 * key), right(after[key]));
            }
#pragma unroll
            for (int i = BLOCKS - 1; i >= j; i--) {
                multiply(d_u, d_y_values[i], load_block_right_turned(me, chunk.mix, READ_ERASED, i, j));
                if (i > j) multiply(d_u, d_z_values[i], load_block_right_turned(me, chunk.mix, ERASE_ERASED, i, j));
                multiply(d_v, load_block_left_turned(me, chunk.mix, READ_KEYS, i, j), right(d_y_values[i]));
            }
            Left known = left(d_u);
            multiply(d_z, known, load_block_right_turned(me, chunk.mix, ERASE_ERASED, j, j));
            multiply(d_z_rows, load_block_left_turned(me, chunk.mix, ERASE_ERASED, j, j), right(known));
            d_z_values[j] = left(d_z);
            store<CHUNK>(me, chunk.DZ, 16 * j, value, left(d_z_rows));
#pragma unroll
            for (int i = BLOCKS - 1; i >= j; i--) {
                multiply(d_v, load_block_left_turned(me, chunk.mix, ERASE_KEYS, i, j), right(d_z_values[i]));
            }
            if (steps.count > 16 * j) {
                long long first = steps.first + 16 * j * steps.stride + value;
                write_rows(me, gradients.v, first, steps.stride, steps.count - 16 * j, d_v);
            }
        }
    }
    barrier();  // U and DZ are whole, and the mix is read
    me = self();

    Sides reads = {{chunk.DY, chunk.DZ}, {chunk.V, chunk.U}, {chunk.K, chunk.B}};
    Sides writes = {{chunk.V, chunk.U}, {chunk.DY, chunk.DZ}, {chunk.R, chunk.A}};
    Gathered of_reads, of_writes;
#pragma unroll
    for (int i = 0; i < KEYS / 8; i++) clear(of_writes[i % 2][i / 2]);
#pragma unroll
    for (int i = 0; i < KEYS / 8; i++) clear(of_reads[i % 2][i / 2]);
#pragma unroll 1
    for (unsigned slice = 0; slice < N; slice += SLICE) {
        if (value / SLICE * SLICE == slice) {
#pragma unroll
            for (int key = 0; key < N / 16; key++) {
                store<SLICE>(me, chunk.after, value - slice, 16 * key, left(carried[key]));
            }
#pragma unroll
            for (int i = 0; i < BLOCKS; i++) {
                Left d_y_values = load_left_turned<CHUNK>(me, chunk.DY, 16 * i, value);
                Left d_z_values = load_left_turned<CHUNK>(me, chunk.DZ, 16 * i, value);
#pragma unroll
                for (int key = 0; key < N / 16; key++) {
                    multiply(carried[key], d_y_values, load_right_turned<CHUNK>(me, chunk.R, 16 * i, 16 * key));
                    multiply(carried[key], d_z_values, load_right_turned<CHUNK>(me, chunk.A, 16 * i, 16 * key));
                }
            }
            Sum before[N / 16];
            load_state(me, before, state, value);
#pragma unroll
            for (int key = 0; key < N / 16; key++) {
                decay(me, before[key], chunk.edges, key);
                Left rounded = left(before[key]);
                store<SLICE>(me, chunk.before, value - slice, 16 * key, rounded);
                enter(me, chunk.entering + value / 16 * N + 16 * key, rounded, carried[key]);
                decay(me, carried[key], chunk.edges, key);
            }
        }
        barrier();
        gather_state(me, of_writes, writes, chunk.after, slice);
        if constexpr (SLICE < N) {
            gather_state(me, of_reads, reads, chunk.before, slice);
            if (slice + SLICE < N) barrier();
        }
    }
    me = self();
    gather_steps<true>(me, of_writes, writes);
    me = self();
    steps.stride = hide(static_cast<int>(steps.stride));

    Pair logarithms[ROWS], flow[ROWS];
    sum_decays(me, logarithms, start, inputs.log_w, steps);
#pragma unroll
    for (int i = 0; i < ROWS; i++) flow[i] = {0, 0};
    write_gathered(me, gradients.k, chunk, steps, of_writes[0], chunk.K, logarithms, -1, flow);
    write_gathered(me, gradients.b, chunk, steps, of_writes[1], chunk.B, logarithms, -1, flow);
    me = self();
    if constexpr (SLICE == N) gather_state(me, of_reads, reads, chunk.before, 0);  // later: these sums take registers
    gather_steps<false>(me, of_reads, reads);
    me = self();
    sum_decays(me, logarithms, start, inputs.log_w, steps);  // again: until here their registers were needed
    write_gathered(me, gradients.r, chunk, steps, of_reads[0], chunk.R, logarithms, 1, flow);
#pragma unroll
    for (int i = ROWS - 1; i > 0; i--) logarithms[i] = logarithms[i - 1];
    logarithms[0] = start;
    Pair reads_before[ROWS];  // - a da
#pragma unroll
    for (int i = 0; i < ROWS; i++) reads_before[i] = {0, 0};
    write_gathered(me, gradients.a, chunk, steps, of_reads[1], chunk.A, logarithms, 1, reads_before);

    Pair sum = {0, 0};
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        sum = {sum.x + flow[i].x + reads_before[i].x, sum.y + flow[i].y + reads_before[i].y};
    }
    *reinterpret_cast<Pair*>(chunk.quarters + own_quarter(me) * N + own_key(me)) = sum;
    barrier();
    sum = {0, 0};
    for (int i = 0; i < WARPS; i++) {
        Pair part = *reinterpret_cast<const Pair*>(chunk.entering + i * N + own_key(me));
        sum = {sum.x + part.x, sum.y + part.y};
    }
    for (int i = 0; i < static_cast<int>(own_quarter(me)); i++) {
        Pair part = *reinterpret_cast<const Pair*>(chunk.quarters + i * N + own_key(me));
        sum = {sum.x + part.x, sum.y + part.y};
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        sum = {sum.x + reads_before[i].x, sum.y + reads_before[i].y};
        if (own_row(me) + i < steps.count) {
            long long at = steps.first + (own_row(me) + i) * steps.stride + own_key(me);
            store_8(gradients.log_w + at, sum.x, sum.y);
        }
        sum = {sum.x + flow[i].x, sum.y + flow[i].y};
    }
    barrier();
}

// The states before the second and later chunks of a span of `count` chunks, into scratch.
DEVICE void advance_span(
    Both& chunk, const Inputs& inputs, const float* entry, float* scratch, const Sequence& sequence, int start,
    int count, int H, int head
) {
    Sum state[N / 16];
    load_state(self(), state, entry, self().warp * 16);
    for (int i = 0; i + 1 < count; i++) {
        Self me = self();
        unsigned value = me.warp * 16;
        open_chunk(me, chunk, inputs, find_steps(sequence, start + i * CHUNK, H, head));
        Left middle[N / 16], values[BLOCKS], erased[BLOCKS];
#pragma unroll
        for (int key = 0; key < N / 16; key++) {
            decay(me, state[key], chunk.edges, key);
            middle[key] = left(state[key]);
        }
#pragma unroll
        for (int j = 0; j < BLOCKS; j++) values[j] = load_left_turned<CHUNK>(me, chunk.V, 16 * j, value);
        solve(me, erased, chunk, middle, values, [](int, const Left&) {});
        advance(me, state, chunk, values, erased);
        store_state(me, scratch + i * N * N, value, state);
        barrier();
    }
}

// As in wkv7_forward; d_y like y, d_final like final or null, gradients like their inputs, d_state fp32. items:
// sequences x H, which the blocks share. scratch: (blocks, SPAN / CHUNK - 1, N, N) fp32, null where that is none.
KERNEL(THREADS, MIN_BLOCKS)
void wkv7_backward(
    const void* r, const float* log_w, const void* k, const void* v, const void* a, const void* b, const float* entries,
    const int* cu_seqlens, const void* d_y, const float* d_final, float* scratch, void* d_r, float* d_log_w, void* d_k,
    void* d_v, void* d_a, void* d_b, float* d_state, int T, int H, int items
) {
    DYNAMIC_SHARED(shared);
    unsigned char* work = shared + 8 * TILE;
    Both chunk;
    chunk.R = shared;
    chunk.A = shared + TILE;
    chunk.K = shared + 2 * TILE;
    chunk.B = shared + 3 * TILE;
    chunk.V = shared + 4 * TILE;
    chunk.U = shared + 5 * TILE;
    chunk.DY = shared + 6 * TILE;
    chunk.DZ = shared + 7 * TILE;
    chunk.mix = work;
    chunk.before = work;
    chunk.after = work + STATE_TILE;
    chunk.stage = reinterpret_cast<float*>(work + 2 * STATE_TILE);
    chunk.quarters = reinterpret_cast<float*>(work + SHARED_WORK);
    chunk.edges = chunk.quarters + 4 * N;
    chunk.entering = chunk.quarters + CHUNK_FLOATS;

    Inputs inputs = {r, log_w, k, v, a, b};
    Gradients gradients = {d_r, d_log_w, d_k, d_v, d_a, d_b};
    scratch += static_cast<long long>(block_x()) * (SPAN / CHUNK - 1) * N * N;
    for (int item = block_x(); item < items; item += grid_x()) {
        int head = item % H;
        Sequence sequence = find_sequence(item / H, cu_seqlens, T);
        long long whole = static_cast<long long>(item) * N * N;
        Sum carried[N / 16];
        load_state(self(), carried, d_final ? d_final + whole : nullptr, self().warp * 16);
        for (int span = (sequence.length + SPAN - 1) / SPAN - 1; span >= 0; span--) {
            int start = span * SPAN, left = sequence.length - start;
            int count = ((left < SPAN ? left : SPAN) + CHUNK - 1) / CHUNK;
            const float* entry = entries + (static_cast<long long>(sequence.entry + span) * H + head) * N * N;
            if constexpr (SPAN > CHUNK) advance_span(chunk, inputs, entry, scratch, sequence, start, count, H, head);
            for (int i = count - 1; i >= 0; i--) {
                Steps steps = find_steps(sequence, start + i * CHUNK, H, head);
                const float* state = i > 0 ? scratch + (i - 1) * N * N : entry;
                differentiate(chunk, inputs, d_y, state, gradients, steps, carried);
            }
        }
        store_state(self(), d_state + whole, self().warp * 16, carried);
    }
}
