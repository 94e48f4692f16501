// WKV-7 one step after another: outputs, last states, and states kept for the backward. wkv7_recurrent.h has the maths.

#include "wkv7_recurrent.h"

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
