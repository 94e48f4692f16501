// WKV-7 one step after another, in fp32: for every chip from sm_75 on, and for few steps on any chip.
//
//   S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T,   y_t = S_t r_t,   w = exp(log_w)
//
// Rows of S (values) never meet in the forward. A thread holds ROWS rows x 8 keys of S in registers, LANES neighbouring
// lanes hold a row together, and the products with a and r are summed over them by shuffles. Inputs go through shared
// memory, TILE steps at a time, as fp32.
//
// The backward takes a head's rows in one block, since the gradients of r, w, k, a and b are sums over rows. It goes
// through the spans from the last to the first: from a span's entry state forward, keeping the state after every TILE
// steps and S a of every step in scratch memory, then backward. Inside a tile a state comes from the one after it,
//
//   S_{t-1} = (S_t - (S_{t-1} a_t) b_t^T - v_t k_t^T) / w_t,
//
// which multiplies roundings by at most 0.5452^-(TILE - 1) = 70 before the next kept state wipes them out.
//
// Fixed when compiled: HEAD_SIZE (N, a multiple of 8 up to 128), INPUT (0 bf16, 1 fp16, 2 fp32: what all tensors are but
// log_w, its gradient, and states, which are fp32), ROWS (1, 2, 4 or 8), THREADS (a multiple of 32), SPAN, and FORWARD
// where that kernel is wanted.
// Tensors are (B, T, H, N), states (sequences, H, N, N) as [value, key], entries (rows, H, N, N).

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

#ifdef FORWARD

// Grid: sequences * H, and parts of a head's rows. `state` and `entries` may be null: zeros, and none wanted.
KERNEL(THREADS, 1)
void wkv7_recurrent_forward(const void* r, const float* log_w, const void* k, const void* v, const void* a, const void* b,
                            const float* state, const int* cu_seqlens, void* y, float* last, float* entries, int time,
                            int heads) {
    SHARED Tile tiles[6];
    Tile &tile_r = tiles[0], &tile_w = tiles[1], &tile_k = tiles[2], &tile_v = tiles[3], &tile_a = tiles[4],
         &tile_b = tiles[5];
    const Work w = work(block_x(), cu_seqlens, time, heads);
    const int lane = thread_x() % LANES;
    const int row = (block_y() * GROUPS + thread_x() / LANES) * ROWS;  // from HEAD on: a group without rows
    Patch s;
    read_patch(s, state, w.state, row, lane);
    pad(tiles, 6);
    barrier();

    Freight<INPUT> load_r, load_k, load_v, load_a, load_b;
    Freight<FP32> load_w;
    auto fetch_all = [&](int step) {
        fetch(load_r, r, w, step);
        fetch(load_w, log_w, w, step);
        fetch(load_k, k, w, step);
        fetch(load_v, v, w, step);
        fetch(load_a, a, w, step);
        fetch(load_b, b, w, step);
    };
    fetch_all(0);
    for (int start = 0; start < w.steps; start += TILE) {
        const int steps = smaller(TILE, w.steps - start);
        barrier();
        place(load_r, tile_r, steps);
        place_decay(load_w, tile_w, steps);
        place(load_k, tile_k, steps);
        place(load_v, tile_v, steps);
        place(load_a, tile_a, steps);
        place(load_b, tile_b, steps);
        barrier();
        fetch_all(start + TILE);  // arrives while this tile is worked on
        if (entries && start % SPAN == 0) write_patch(s, entries, entry(w, start / SPAN), row, lane);
        for (int i = 0; i < steps; i++) {
            float added[ROWS], out[ROWS], keys[KEYS];
#pragma unroll
            for (int q = 0; q < ROWS; q++) added[q] = tile_v[i][smaller(row + q, HEAD - 1)];
            advance(s, out, tile_w[i], tile_k[i], tile_a[i], tile_b[i], added, lane);
            read_keys(keys, tile_r[i], lane);
#pragma unroll
            for (int q = 0; q < ROWS; q++) out[q] = dot(s[q], keys);
            store_row_sums(out, y, at(w, start + i), row, lane);
        }
    }
    write_patch(s, last, w.state, row, lane);
}

#else

// Grid: as many blocks as find place, each with a part of `scratch` and every grid-th of `items` = sequences * H.
// `d_final` may be null: zeros. Shared memory: the tiles, then the column sums of the warps.
KERNEL(THREADS, 1)
void wkv7_recurrent_backward(const void* r, const float* log_w, const void* k, const void* v, const void* a,
                             const void* b, const float* entries, const int* cu_seqlens, const void* d_y,
                             const float* d_final, void* d_r, float* d_log_w, void* d_k, void* d_v, void* d_a, void* d_b,
                             float* d_state, float* scratch, int time, int heads, int items) {
    constexpr int QUANTITIES = 5;  // columns' gradients, in the order r, w, k, a, b
    constexpr int SUMS = QUANTITIES * KEYS, GROUPS_OF_WARP = 32 / LANES;
    constexpr int KEPT = SPAN / TILE, FOURS = ROWS * KEYS / 4;
    static_assert(GROUPS * ROWS >= HEAD, "a block holds all rows");
    DYNAMIC_SHARED(memory);
    Tile* tiles = reinterpret_cast<Tile*>(memory);
    Tile &tile_r = tiles[0], &tile_w = tiles[1], &tile_k = tiles[2], &tile_v = tiles[3], &tile_a = tiles[4],
         &tile_b = tiles[5], &tile_d_y = tiles[6], &tile_removed = tiles[7];
    auto sums = reinterpret_cast<float(*)[SUMS * LANES]>(tiles + 8);  // of each warp
    // Of this block: a thread's patch after each tile of a span, and S a of each step.
    Four* kept = reinterpret_cast<Four*>(scratch + block_x() * (KEPT * FOURS * 4ll * THREADS + SPAN * HEAD));
    float* removed_rows = reinterpret_cast<float*>(kept + KEPT * FOURS * THREADS);

    const int lane = thread_x() % LANES, warp = thread_x() / 32, row = thread_x() / LANES * ROWS;
    pad(tiles, 8);
    barrier();

    for (int item = block_x(); item < items; item += grid_x()) {
        const Work w = work(item, cu_seqlens, time, heads);
        Patch s, g;  // the state, and the loss's gradient with respect to it
        read_patch(g, d_final, w.state, row, lane);
        auto load_inputs = [&](int start, int steps) {
            Freight<FP32> decay;
            fetch(decay, log_w, w, start);
            place_decay(decay, tile_w, steps);
            load<INPUT>(tile_k, k, w, start, steps);
            load<INPUT>(tile_v, v, w, start, steps);
            load<INPUT>(tile_a, a, w, start, steps);
            load<INPUT>(tile_b, b, w, start, steps);
        };

        for (int span = (w.steps - 1 + SPAN) / SPAN - 1; span >= 0; span--) {
            const int begin = span * SPAN, end = smaller(begin + SPAN, w.steps);
            read_patch(s, entries, entry(w, span), row, lane);
            for (int start = begin; start < end; start += TILE) {
                const int steps = smaller(TILE, end - start), tile = (start - begin) / TILE;
                barrier();
                load_inputs(start, steps);
                barrier();
                for (int i = 0; i < steps; i++) {
                    float added[ROWS], removed[ROWS];
#pragma unroll
                    for (int q = 0; q < ROWS; q++) added[q] = tile_v[i][smaller(row + q, HEAD - 1)];
                    advance(s, removed, tile_w[i], tile_k[i], tile_a[i], tile_b[i], added, lane);
                    if (lane == 0) {
#pragma unroll
                        for (int q = 0; q < ROWS; q++)
                            if (row + q < HEAD) removed_rows[(start - begin + i) * HEAD + row + q] = removed[q];
                    }
                }
#pragma unroll
                for (int i = 0; i < FOURS; i++) {
                    const float* x = s[i / 2] + i % 2 * 4;
                    kept[(tile * FOURS + i) * THREADS + thread_x()] = {x[0], x[1], x[2], x[3]};
                }
            }

            for (int tile = (end - begin - 1) / TILE; tile >= 0; tile--) {
                const int start = begin + tile * TILE, steps = smaller(TILE, end - start);
                barrier();
                load<INPUT>(tile_r, r, w, start, steps);
                load<INPUT>(tile_d_y, d_y, w, start, steps);
                load_inputs(start, steps);
                for (int i = thread_x(); i < steps * HEAD; i += THREADS)
                    tile_removed[i / HEAD][i % HEAD] = removed_rows[tile * TILE * HEAD + i];
                barrier();
#pragma unroll
                for (int i = 0; i < FOURS; i++) {
                    const Four f = kept[(tile * FOURS + i) * THREADS + thread_x()];
#pragma unroll
                    for (int j = 0; j < 4; j++) s[i / 2][i % 2 * 4 + j] = f.x[j];
                }
                for (int step = steps - 1; step >= 0; step--) {
                    float columns[QUANTITIES][KEYS] = {}, d_v_row[ROWS], d_removed[ROWS];
                    float(&c_r)[KEYS] = columns[0], (&c_w)[KEYS] = columns[1], (&c_k)[KEYS] = columns[2];
                    float(&c_a)[KEYS] = columns[3], (&c_b)[KEYS] = columns[4];
                    float keys_r[KEYS], keys_k[KEYS], keys_b[KEYS], decay[KEYS], growth[KEYS];
                    read_keys(keys_r, tile_r[step], lane);
                    read_keys(keys_k, tile_k[step], lane);
                    read_keys(keys_b, tile_b[step], lane);
                    read_keys(decay, tile_w[step], lane);
#pragma unroll
                    for (int j = 0; j < KEYS; j++) growth[j] = PADDED > HEAD && decay[j] == 0 ? 0 : reciprocal(decay[j]);
#pragma unroll
                    for (int q = 0; q < ROWS; q++) {
                        const int place = smaller(row + q, HEAD - 1);
                        const float d_out = row + q < HEAD ? tile_d_y[step][place] : 0;
                        const float added = tile_v[step][place], removed = tile_removed[step][place];
#pragma unroll
                        for (int j = 0; j < KEYS; j++) {
                            c_r[j] += s[q][j] * d_out;
                            g[q][j] += d_out * keys_r[j];
                            c_k[j] += g[q][j] * added;
                            c_b[j] += g[q][j] * removed;
                            s[q][j] = (s[q][j] - (removed * keys_b[j] + added * keys_k[j])) * growth[j];
                            c_w[j] += g[q][j] * s[q][j];
                        }
                        d_v_row[q] = dot(g[q], keys_k);
                        d_removed[q] = dot(g[q], keys_b);
                    }
                    sum_rows(d_removed);
                    float keys_a[KEYS];
                    read_keys(keys_a, tile_a[step], lane);
#pragma unroll
                    for (int q = 0; q < ROWS; q++)
#pragma unroll
                        for (int j = 0; j < KEYS; j++) {
                            c_a[j] += s[q][j] * d_removed[q];
                            g[q][j] = g[q][j] * decay[j] + d_removed[q] * keys_a[j];
                        }
                    const long long vector = at(w, start + step);
                    store_row_sums(d_v_row, d_v, vector, row, lane);

                    float* column_sums = &columns[0][0];
                    const int first = scatter_sum<SUMS, 16, LANES>(column_sums, thread_x() % 32);
                    if (thread_x() % 32 / LANES % copies(SUMS, GROUPS_OF_WARP) == 0) {
#pragma unroll
                        for (int i = 0; i < share(SUMS, GROUPS_OF_WARP); i++)
                            sums[warp][(first + i) * LANES + lane] = column_sums[i];
                    }
                    barrier();
#pragma unroll
                    for (int quantity = 0; quantity < QUANTITIES; quantity++)
#pragma unroll
                        for (int i = 0; i < (HEAD + THREADS - 1) / THREADS; i++) {
                            const int key = thread_x() + i * THREADS;
                            if (key >= HEAD) break;
                            const int chunk = key / 4, j = chunk / LANES * 4 + key % 4;
                            float total = 0;
#pragma unroll
                            for (int other = 0; other < WARPS; other++)
                                total += sums[other][(quantity * KEYS + j) * LANES + chunk % LANES];
                            if (quantity == 1) {
                                d_log_w[vector + key] = total * tile_w[step][key];
                            } else {
                                store(quantity == 0 ? d_r : quantity == 2 ? d_k : quantity == 3 ? d_a : d_b, vector + key, total);
                            }
                        }
                    if (step) barrier();  // a tile ends with one of its own
                }
            }
        }
        write_patch(g, d_state, w.state, row, lane);
    }
}

#endif
