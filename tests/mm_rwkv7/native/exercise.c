/* Calls the C kernel on many shapes, every array exactly as large as it must be: what a sanitizer watches. Its results are
   compared with themselves alone: one thread and many must agree to the bit. */

#include "wkv7.c"

#include <stdio.h>

enum { MOST_THREADS_HERE = 5, INPUTS = 6 };

static _Thread_local uint32_t seed = 1;

static float uniform(float low, float high) {
    seed = seed * 1664525 + 1013904223;
    return low + (high - low) * (float)(seed >> 8) * 0x1p-24f;
}

static void *array(int64_t count, int dtype, float low, float high) {
    void *made = malloc((size_t)count * (dtype == FLOAT32 ? 4 : 2));
    for (int64_t i = 0; i < count; i++) {
        float x = uniform(low, high);
        store(made, i, &x, 1, dtype);
    }
    return made;
}

struct results {
    void *of[10];
    size_t bytes[10];
};

static void *result(struct results *results, int which, int64_t count, int dtype) {
    results->bytes[which] = (size_t)count * (dtype == FLOAT32 ? 4 : 2);
    return results->of[which] = array(count, dtype, 9, 9);
}

static int exercise(int B, int T, int H, int N, const int32_t *ends, int sequences, int dtype, int with_state) {
    int span = N <= 64 ? 64 : 128;
    int64_t steps = (int64_t)B * T * H * N, matrices = (int64_t)sequences * H * N * N;
    int64_t rows = ends ? T / span + sequences : (int64_t)B * ((T + span - 1) / span), kept = rows * H * N * N;
    void *inputs[INPUTS], *d_y = array(steps, dtype, -1, 1);
    for (int i = 0; i < INPUTS; i++)
        inputs[i] = i == 1 ? array(steps, FLOAT32, -0.6f, 0) : array(steps, dtype, -0.2f, 0.2f);
    float *state = with_state ? array(matrices, FLOAT32, -1, 1) : NULL;
    float *d_last = with_state ? array(matrices, FLOAT32, -1, 1) : NULL;
    struct results found[2] = {0};
    int threads[2] = {1, MOST_THREADS_HERE}, failed = 0;
    for (int i = 0; i < 2; i++) {
        void *y = result(&found[i], 0, steps, dtype), *last = result(&found[i], 1, matrices, FLOAT32), *d[INPUTS];
        float *entries = result(&found[i], 2, kept, FLOAT32), *d_state = result(&found[i], 3, matrices, FLOAT32);
        for (int j = 0; j < INPUTS; j++) d[j] = result(&found[i], 4 + j, steps, j == 1 ? FLOAT32 : dtype);
        for (int keep = 0; keep < 2; keep++)
            failed |= wkv7_forward(B, T, H, N, sequences, span, dtype, threads[i], keep, ends, inputs[0], inputs[1],
                                   inputs[2], inputs[3], inputs[4], inputs[5], state, y, last, entries);
        failed |= wkv7_backward(B, T, H, N, sequences, span, dtype, threads[i], ends, inputs[0], inputs[1], inputs[2],
                                inputs[3], inputs[4], inputs[5], entries, d_y, d_last, d[0], d[1], d[2], d[3], d[4],
                                d[5], d_state);
    }
    for (int i = 0; i < 10; i++) {
        failed |= memcmp(found[0].of[i], found[1].of[i], found[0].bytes[i]) != 0;
        free(found[0].of[i]), free(found[1].of[i]);
    }
    for (int i = 0; i < INPUTS; i++) free(inputs[i]);
    free(d_y), free(state), free(d_last);
    if (failed) printf("B %d T %d H %d N %d dtype %d: failed or different\n", B, T, H, N, dtype);
    return failed;
}

static void *alone(void *failed) {
    *(int *)failed = exercise(1, 70, 4, 64, NULL, 1, FLOAT32, 1);
    return NULL;
}

int main(void) {
    int failed = 0, sizes[] = {8, 24, 64, 128}, lengths[] = {1, 15, 16, 17, 64, 65, 129};
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 7; j++)
            failed |= exercise(2, lengths[j], 3, sizes[i], NULL, 2, (i + j) % 3, j % 2);
    int32_t ends[] = {0, 0, 3, 68, 68, 197, 200, 200};
    for (int i = 0; i < 4; i++)
        for (int dtype = 0; dtype < 3; dtype++) failed |= exercise(1, 200, 2, sizes[i], ends, 7, dtype, dtype != 1);
    int32_t falling[] = {0, 5, 3, 8};
    failed |= wkv7_forward(1, 8, 1, 8, 3, 64, FLOAT32, 1, 0, falling, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) != 2;

    pthread_t threads[3];
    int failures[3] = {0};
    for (int i = 0; i < 3; i++) pthread_create(&threads[i], NULL, alone, &failures[i]);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        failed |= failures[i];
    }
    puts(failed ? "failed" : "done");
    return failed;
}
