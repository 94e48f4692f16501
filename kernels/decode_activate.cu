// What follows products of more rows than kernels/matvec.cu takes, which come without their activations.
// Fixed when compiled: NUMBER (0 fp32, 1 bf16, 2 fp16).

#include "numbers.h"

// numbers[0, tanh_end) = tanh, numbers[sigmoid_begin, sigmoid_end) = sigmoid, in place.
// Grid (sigmoid_end / 256, rounded up).
KERNEL(256, 1) void activate(void* numbers, int tanh_end, int sigmoid_begin, int sigmoid_end) {
    int i = block_x() * 256 + thread_x();
    if (i >= sigmoid_end || (i >= tanh_end && i < sigmoid_begin)) return;
    Floats<1> x = load<NUMBER, 1>(numbers, i);
    x.x[0] = i < tanh_end ? 2.0f * sigmoid(2.0f * x.x[0]) - 1.0f : sigmoid(x.x[0]);
    store<NUMBER, 1>(numbers, i, x);
}

// numbers = max(numbers, 0)^2, in place. Grid (count / 1024, rounded up); count is a multiple of 4.
KERNEL(256, 1) void square_positive(void* numbers, int count) {
    int i = 4 * (block_x() * 256 + thread_x());
    if (i >= count) return;
    Floats<4> x = load<NUMBER, 4>(numbers, i);
#pragma unroll
    for (int c = 0; c < 4; c++) x.x[c] = x.x[c] < 0.0f ? 0.0f : x.x[c] * x.x[c];
    store<NUMBER, 4>(numbers, i, x);
}
