"""The decoding kernel under the compiler's sanitizers: memory, undefined behaviour, races of its threads."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mm_rwkv7.ops.artefacts import source
from mm_rwkv7.ops.decode import LAYER_TENSORS

# Every buffer has its exact size, so that a step beyond any of them is seen.
DRIVER = """
#include "decode.c"
#include <stdio.h>

static uint32_t seed = 1;
static float draw(void) { seed = seed * 1664525u + 1013904223u; return (float)(seed >> 8) / (1 << 24) - 0.5f; }
static void *fill(size_t count, int type) {
    void *p = malloc(count * element_bytes[type]);
    for (size_t i = 0; i < count; i++) {
        const float x = draw();
        if (type == INT8) ((int8_t *)p)[i] = (int8_t)(x * 250);
        else if (type == FP32) ((float *)p)[i] = x;
        else ((uint16_t *)p)[i] = (uint16_t)((type == BF16 ? 0x3c00 : 0x2000) | (seed >> 20 & 0x7f));
    }
    return p;
}
static Tensor tensor(size_t rows, size_t columns, int type, int matrix) {
    if (type == INT8 && !matrix) type = BF16;
    Tensor t = {NULL, NULL, type, 0};
    if (type == INT8) { columns = (columns + 63) / 64 * 64; t.scales = fill(rows * columns / 64, BF16); }
    t.data = fill(rows * columns, type);
    return t;
}
static void run(int D, int H, int F, int type, int B, int texts) {
    const int L = 2, N = D / H, ranks[] = {5, 70, 7, 33}, V = 50; /* decay, iclr, value, gate */
    Tensor tensors[2 * LAYER_TENSORS + 4];
    for (int i = 0; i < L * LAYER_TENSORS; i++) {
        const int name = i % LAYER_TENSORS;
        if (name == FFN_KEY) tensors[i] = tensor(F, D, type, 1);
        else if (name == FFN_VALUE) tensors[i] = tensor(D, F, type, 1);
        else if (name >= RECEPTANCE && name <= OUTPUT) tensors[i] = tensor(D, D, type, 1);
        else if (name == W1 || name == W2) tensors[i] = tensor(D, ranks[0], type, 0);
        else if (name == A1 || name == A2) tensors[i] = tensor(D, ranks[1], type, 0);
        else if (name == V1 || name == V2) tensors[i] = tensor(D, ranks[2], type, 0);
        else if (name == G1 || name == G2) tensors[i] = tensor(D, ranks[3], type, 0);
        else tensors[i] = tensor(D, 1, name == W0 ? FP32 : type, 0);
    }
    for (int i = 0; i < 4; i++) tensors[L * LAYER_TENSORS + i] = tensor(D, 1, type, 0);
    const Model model = {L, D, H, F, ranks[0], ranks[1], ranks[2], ranks[3], 1, 1e-5f, tensors};
    const size_t square = (size_t)texts * D * N, shift = (size_t)texts * D, row = (size_t)B * D;
    int32_t *slots = malloc(sizeof(int32_t) * B); /* the last texts have one row each, the first one the others */
    for (int b = 0; b < B; b++) slots[b] = b < B - texts ? 0 : b - (B - texts);
    LayerState before[2];
    for (int i = 0; i < L; i++) before[i] = (LayerState){fill(square, FP32), fill(shift, FP32), fill(shift, FP32)};
    float *x = fill(row, FP32), *first = NULL, *logits = malloc(sizeof(float) * B * V);
    const Tensor head = tensor(V, D, type, 1);
    for (int threads = 1; threads <= 3; threads++) {
        for (int again = 0; again < 6; again++) {
            float *wkv = malloc(4 * L * square), *shifts = malloc(4 * L * 2 * shift), *hidden = malloc(4 * row);
            if (decode_step(&model, B, threads, x, before, slots, texts, wkv, shifts, hidden)) exit(2);
            if (decode_product(&head, V, D, B, threads, hidden, logits)) exit(2);
            for (size_t i = 0; i < row; i++)
                if (!isfinite(hidden[i]) || (first && hidden[i] != first[i])) { puts("threads disagree"); exit(3); }
            if (!first) first = hidden;
        }
    }
}
int main(void) {
    const int rows[] = {1, 8, 11}, texts[] = {1, 8, 3};
    for (int type = FP32; type <= INT8; type++)
        for (int i = 0; i < 3; i++) {
            run(128, 2, 256, type, rows[i], texts[i]);
            run(60, 3, 130, type, rows[i], texts[i]);
        }
    return 0;
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_kernel_is_clean(sanitizer: str, tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "driver.c").write_text(DRIVER)
    program = tmp_path / "driver"
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-O1", "-g", "-std=gnu11", "-march=native"]
    where = ["-I", str(source("decode.c").parent)]
    subprocess.run(
        [compiler, *flags, *where, str(tmp_path / "driver.c"), "-o", str(program), "-lm", "-pthread"], check=True
    )
    leaks = {"ASAN_OPTIONS": "detect_leaks=0"}  # the driver frees nothing
    done = subprocess.run([program], capture_output=True, text=True, env=leaks, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_kernel_names_as_many_tensors_as_are_passed() -> None:
    text = source("decode.c").read_text()
    names = text.split("enum {\n    LN1_WEIGHT")[1].split("LAYER_TENSORS")[0]
    assert names.count(",") == len(LAYER_TENSORS)
