// The gradients of WKV-7, one step after another. wkv7_recurrent.h has the recurrence.
//
// The backward takes a head's rows in one block, since the gradients of r, w, k, a and b are sums over rows. It goes
// through the spans from the last to the first: from a span's entry state forward, keeping the state after every TILE
// steps and S a of every step in scratch memory, then backward. Inside a tile a state comes from the one after it,
//
//   S_{t-1} = (S_t - (S_{t-1} a_t) b_t^T - v_t k_t^T) / w_t,
//
// which multiplies roundings by at most 0.5452^-(TILE - 1) = 70 before the next kept state wipes them out.

#include "wkv7_recurrent.h"

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
