// WKV-7 forward for training and prefill, a chunk at a time on tensor cores: see wkv7_chunk.h.
//
// A block of threads takes one head of one sequence, and VALUES of its N values: rows of the state do not meet. All
// warps open a chunk together; then each of VALUES / 16 warps carries 16 rows of the state through it in registers, in
// fp32.

#include "wkv7_chunk.h"

constexpr int SPLITS = N / VALUES;

static_assert(5 * TILE + MIX + 4 * CHUNK_FLOATS == SHARED_BYTES);
static_assert(SPAN % CHUNK == 0);

// The first of the warp's 16 values.
DEVICE unsigned own_value(Self me) { return block_x() % SPLITS * VALUES + me.warp * 16; }

// Where the block's state begins among (sequences, H, N, N).
DEVICE long long whole_state() { return static_cast<long long>(hide(block_x()) / SPLITS) * N * N; }

// y of an open chunk, 16 values of it, and the state after it.
DEVICE void read_and_advance(Self me, const Chunk& chunk, const Steps& steps, void* y, Sum (&carried)[N / 16]) {
    unsigned value = own_value(me);
    Left middle[N / 16], values[BLOCKS], erased[BLOCKS];
#pragma unroll
    for (int key = 0; key < N / 16; key++) {
        decay(me, carried[key], chunk.edges, key);
        middle[key] = left(carried[key]);
    }
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) values[i] = load_left_turned<CHUNK>(me, chunk.V, 16 * i, value);
    solve(me, erased, chunk, middle, values, [](int, const Left&) {});
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
        Sum sum;
        clear(sum);
#pragma unroll
        for (int key = 0; key < N / 16; key++) {
            multiply(sum, load_left<CHUNK>(me, chunk.R, 16 * i, 16 * key), right(middle[key]));
        }
#pragma unroll
        for (int j = 0; j <= i; j++) {
            multiply(sum, load_block_left(me, chunk.mix, READ_KEYS, i, j), right(values[j]));
            multiply(sum, load_block_left(me, chunk.mix, READ_ERASED, i, j), right(erased[j]));
        }
        if (steps.count > 16 * i) {
            long long first = steps.first + 16 * i * steps.stride + value;
            write_rows(me, y, first, steps.stride, steps.count - 16 * i, sum);
        }
    }
    advance(me, carried, chunk, values, erased);
}

// r, k, v, a, b: (.., H, N) in INPUT's type, log_w fp32; T steps in each sequence, or from cu_seqlens[s] to [s + 1].
// state: (sequences, H, N, N) fp32 or null; y like v; final like state; entries: the states before each SPAN, or null.
KERNEL(THREADS, MIN_BLOCKS)
void wkv7_forward(
    const void* r, const float* log_w, const void* k, const void* v, const void* a, const void* b, const float* state,
    const int* cu_seqlens, void* y, float* final, float* entries, int T, int H
) {
    DYNAMIC_SHARED(shared);
    Chunk chunk = {shared, shared + TILE, shared + 2 * TILE, shared + 3 * TILE, shared + 4 * TILE, shared + 5 * TILE};
    chunk.quarters = reinterpret_cast<float*>(shared + 5 * TILE + MIX);
    chunk.edges = chunk.quarters + 4 * N;

    int head = block_x() / SPLITS % H, number = block_x() / SPLITS / H;
    Sequence sequence = find_sequence(number, cu_seqlens, T);
    Inputs inputs = {r, log_w, k, v, a, b};
    bool carries = VALUES == N || self().warp < VALUES / 16;
    Sum carried[N / 16];
    if (carries) load_state(self(), carried, state ? state + whole_state() : nullptr, own_value(self()));

    for (int start = 0; start < sequence.length; start += CHUNK) {
        if (entries && carries && start % SPAN == 0) {
            float* entry = entries + (static_cast<long long>(sequence.entry + start / SPAN) * H + head) * N * N;
            store_state(self(), entry, own_value(self()), carried);
        }
        if (start + CHUNK < sequence.length) {
            prefetch_inputs(self(), inputs, find_steps(sequence, start + CHUNK, H, head));
        }
        Steps steps = find_steps(sequence, start, H, head);
        open_chunk(self(), chunk, inputs, steps);
        if (carries) read_and_advance(self(), chunk, steps, y, carried);
        barrier();
    }
    if (carries) store_state(self(), final + whole_state(), own_value(self()), carried);
}
