// Runs a kernel's grid on the host, one block after another.
//
// The threads of a block are fibers of one thread of the system: switching costs some nanoseconds, where handing over
// between threads of the system costs microseconds, 32 times for every exchange of a warp. The order is the same in every
// run, a deadlock is seen at once (nobody can go on), and ThreadSanitizer takes every fiber for a thread of its own. It
// is told of no order between them but barriers, and so reports every pair of accesses that lacks one.
// This file itself is compiled without a sanitizer: the exchange of registers must not look like an exchange in memory.
// For the same reason what runs on a fiber allocates nothing.

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "primitives.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(SANITIZE_THREAD)
#include <sanitizer/tsan_interface.h>
#endif

// The static shared memory of the kernel's file.
extern "C" __attribute__((weak)) unsigned char __start_block_shared[];
extern "C" __attribute__((weak)) unsigned char __stop_block_shared[];

namespace emulation {
int thread;
Index block, grid;
unsigned char* dynamic_shared;

namespace {
constexpr std::size_t STACK = 256 << 10;
constexpr int MOST_COPIES = 256;     // on their way at a time, of one thread
constexpr std::size_t GUARD = 64;  // bytes after dynamic shared memory that must stay as they are

#if defined(__x86_64__)
struct Context {
    void* stack_pointer;
};

extern "C" void emulation_switch(void** from, void* to);
asm(R"(
.text
.type emulation_switch, @function
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulation_switch, .-emulation_switch
)");

void prepare(Context& context, unsigned char* stack, void (*body)()) {
    auto top = reinterpret_cast<void**>(stack + STACK) - 2;  // a function begins 8 bytes off a multiple of 16
    *top = reinterpret_cast<void*>(body);
    for (int i = 1; i <= 6; i++) top[-i] = nullptr;
    context.stack_pointer = top - 6;
}

void change(Context& from, Context& to) { emulation_switch(&from.stack_pointer, to.stack_pointer); }
#else
using Context = ucontext_t;

void prepare(Context& context, unsigned char* stack, void (*body)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, body, 0);
}

void change(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

struct Fiber {
    Context context;
    int thread;
    unsigned char* stack;
    const char* waits_at;  // null while it can run
    Where where;
    bool ended;
    Copy copies[MOST_COPIES];    // on their way: the numbers begun_copies - 1, ... down to arrived_copies
    int group_of[MOST_COPIES];   // which group each belongs to
    int begun_copies, arrived_copies, groups;
    void* sanitizer;
};

struct Meeting {  // of threads that wait for each other
    int arrived = 0;
    const char* what;
    Where where;
    bool phase = false;
    char sanitizer[2];
};

struct Warp : Meeting {
    void* parts[32];
    bool rows_phase = false;
    const void* rows[2][32];  // what the lanes gave to exchange_rows; two in turn, as a lane may read late
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
Meeting block_meeting;
struct Queue {
    Fiber* places[1024];
    unsigned begin = 0, end = 0;

    void push(Fiber* fiber) { places[end++ % 1024] = fiber; }
    Fiber* pop() { return begin == end ? nullptr : places[begin++ % 1024]; }
} ready;
Fiber outside;  // the scheduler itself
Fiber* self = &outside;
const Kernel* kernel;
void** arguments;
std::string failure;
char grid_end;

void go_on_with(Fiber& to) {
    Fiber& from = *self;
    self = &to;
    thread = to.thread;
#if defined(SANITIZE_THREAD)
    __tsan_switch_to_fiber(to.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
    change(from.context, to.context);
}

void go_on() {
    Fiber* next = ready.pop();
    go_on_with(next ? *next : outside);
}

std::string place(Where where) {
    std::string file = where.file_name();
    if (where.line() == 0) return "kernel";
    return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

void body() {
    kernel->run(arguments);
    if (self->begun_copies != self->arrived_copies) fail("the thread ends with copies on their way", Where());
    self->ended = true;
#if defined(SANITIZE_THREAD)
    __tsan_release(&grid_end);
#endif
    go_on();
}

void released(void* phase) {
#if defined(SANITIZE_THREAD)
    __tsan_release(phase);
#else
    (void)phase;
#endif
}

void acquired(void* phase) {
#if defined(SANITIZE_THREAD)
    __tsan_acquire(phase);
#else
    (void)phase;
#endif
}

// Waits until `expected` threads have come; true for the one that came last, which does not wait.
bool arrive(Meeting& meeting, const char* what, int expected, Where where) {
    if (meeting.arrived++ == 0) {
        meeting.what = what;
        meeting.where = where;
    } else if (meeting.where.line() != where.line() || std::strcmp(meeting.what, what)) {
        std::string text = "threads that wait for each other are at different places: " + std::string(meeting.what) +
                           " at " + place(meeting.where) + " and " + what;
        fail(text.c_str(), where);
    }
    if (meeting.arrived == expected) {
        meeting.arrived = 0;
        return true;
    }
    self->waits_at = what;
    self->where = where;
    go_on();
    return false;
}

void release(int begin, int end, bool backwards) {
    for (int i = begin; i < end; i++) {
        Fiber& fiber = fibers[backwards ? end - 1 - (i - begin) : i];
        if (&fiber == self) continue;
        fiber.waits_at = nullptr;
        ready.push(&fiber);
    }
}

void meet(const char* what, void* part, void (*work)(Warp&), Where where) {
    int first = thread / 32 * 32;
    Warp& warp = warps[thread / 32];
    warp.parts[thread % 32] = part;
    if (!arrive(warp, what, 32, where)) return;
    work(warp);
    release(first, first + 32, false);
}

void order_meeting(Meeting& meeting, const char* what, int begin, int end, Where where) {
    bool phase = meeting.phase;  // two in turn: who goes on early adds to the other one
    released(&meeting.sanitizer[phase]);
    if (arrive(meeting, what, end - begin, where)) {
        meeting.phase = !phase;
        release(begin, end, phase);  // in turn from either end, so that nothing rests on the order
    }
    acquired(&meeting.sanitizer[phase]);
}
}  // namespace

void fail(const char* what, Where where) {
    char text[512];
    std::snprintf(text, sizeof text, "%s: block (%d, %d, %d), thread %d: %s", place(where).c_str(), block.x, block.y,
                  block.z, thread, what);
    if (failure.empty()) failure = text;
    go_on_with(outside);  // and never comes back
}

void barrier(Where where) { order_meeting(block_meeting, "barrier", 0, static_cast<int>(fibers.size()), where); }

void warp_barrier(Where where) {
    int first = thread / 32 * 32;
    order_meeting(warps[thread / 32], "warp_barrier", first, first + 32, where);
}

namespace {
struct Given {
    unsigned value;
    int source;
    unsigned result;
};

struct Product {
    float* d;
    const unsigned *a, *b;
};

// Tensor cores add eight products at a time to a sum and cut the result off, where others round it (Fasi, Higham, Mikaitis,
// Pranesh, PeerJ CS 7:e330): over many products a sum shrinks.
float cut_off(double sum) {
    float rounded = static_cast<float>(sum);
    bool beyond = fabs(static_cast<double>(rounded)) > fabs(sum);
    return beyond ? std::bit_cast<float>(std::bit_cast<unsigned>(rounded) - 1) : rounded;
}

template <int K> void multiply(Warp& warp, const float (&A)[16][K], const float (&B)[K][8]) {
    float D[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const float* d = static_cast<Product*>(warp.parts[lane])->d;
        for (int i = 0; i < 4; i++) D[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = d[i];
    }
    for (int i = 0; i < 16; i++) {
        for (int eight = 0; eight < K; eight += 8) {
            double sums[8];
            for (int j = 0; j < 8; j++) sums[j] = D[i][j];
            for (int k = eight; k < eight + 8; k++) {
                for (int j = 0; j < 8; j++) sums[j] += static_cast<double>(A[i][k]) * B[k][j];
            }
            for (int j = 0; j < 8; j++) D[i][j] = cut_off(sums[j]);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        float* d = static_cast<Product*>(warp.parts[lane])->d;
        for (int i = 0; i < 4; i++) d[i] = D[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
}

template <float (*to_float)(unsigned short)> void multiply_16_bits(Warp& warp) {
    float A[16][16], B[16][8];
    for (int lane = 0; lane < 32; lane++) {
        auto part = static_cast<Product*>(warp.parts[lane]);
        int group = lane / 4, pair = lane % 4 * 2;
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 4; i++) {
                auto element = static_cast<unsigned short>(part->a[i] >> 16 * half);
                A[group + i % 2 * 8][pair + i / 2 * 8 + half] = to_float(element);
            }
            for (int i = 0; i < 2; i++) {
                B[pair + i * 8 + half][group] = to_float(static_cast<unsigned short>(part->b[i] >> 16 * half));
            }
        }
    }
    multiply<16>(warp, A, B);
}

float tf32(unsigned bits) { return std::bit_cast<float>(bits & ~0x1fffu); }

void multiply_tf32(Warp& warp) {
    float A[16][8], B[8][8];
    for (int lane = 0; lane < 32; lane++) {
        auto part = static_cast<Product*>(warp.parts[lane]);
        int group = lane / 4, column = lane % 4;
        for (int i = 0; i < 4; i++) A[group + i % 2 * 8][column + i / 2 * 4] = tf32(part->a[i]);
        for (int i = 0; i < 2; i++) B[column + i * 4][group] = tf32(part->b[i]);
    }
    multiply<8>(warp, A, B);
}
}  // namespace

unsigned exchange(const char* what, unsigned value, int source, Where where) {
    Given given{value, source, 0};
    auto work = [](Warp& warp) {
        for (void* part : warp.parts) {
            auto given = static_cast<Given*>(part);
            given->result = static_cast<Given*>(warp.parts[given->source])->value;
        }
    };
    meet(what, &given, work, where);
    return given.result;
}

const void* const* exchange_rows(const char* what, const void* row, Where where) {
    Warp& warp = warps[thread / 32];
    bool phase = warp.rows_phase;
    auto work = [](Warp& warp) {
        for (int i = 0; i < 32; i++) warp.rows[warp.rows_phase][i] = warp.parts[i];
        warp.rows_phase = !warp.rows_phase;
    };
    meet(what, const_cast<void*>(row), work, where);
    return warp.rows[phase];
}

void mma(Operand operand, float* d, const unsigned* a, const unsigned* b, Where where) {
    Product part{d, a, b};
    switch (operand) {
        case Operand::bf16: return meet("mma_bf16", &part, multiply_16_bits<bf16_to_float>, where);
        case Operand::half: return meet("mma_half", &part, multiply_16_bits<half_to_float>, where);
        case Operand::tf32: return meet("mma_tf32", &part, multiply_tf32, where);
    }
}

void start_copy(Copy copy) {
    if (self->begun_copies - self->arrived_copies == MOST_COPIES) fail("too many copies on their way", Where());
    int i = self->begun_copies++ % MOST_COPIES;
    self->copies[i] = copy;
    self->group_of[i] = self->groups;
}

void commit_copies() { self->groups++; }

bool arrived_copy(int groups_left, Copy& copy) {
    int i = self->arrived_copies % MOST_COPIES;
    if (self->arrived_copies == self->begun_copies || self->group_of[i] >= self->groups - groups_left) return false;
    copy = self->copies[i];
    self->arrived_copies++;
    return true;
}

namespace {
void poison(unsigned char* begin, unsigned char* end) {
    for (auto p = begin; p < end; p++) *static_cast<volatile unsigned char*>(p) = 0xff;
}

unsigned char* new_stack() {
    void* stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED || mprotect(stack, 4096, PROT_NONE)) std::abort();
    return static_cast<unsigned char*>(stack);
}

void make_fibers(int threads) {
    static std::vector<unsigned char*> stacks;
    while (static_cast<int>(stacks.size()) < threads) stacks.push_back(new_stack());
    fibers.assign(threads, Fiber{});
    for (int i = 0; i < threads; i++) {
        fibers[i].thread = i;
        fibers[i].stack = stacks[i];
    }
}

std::string who_waits() {
    std::map<std::string, int> counts;
    for (auto& fiber : fibers) {
        counts[fiber.ended ? "have ended" : std::string("wait at ") + fiber.waits_at + " at " + place(fiber.where)]++;
    }
    std::string text = "deadlock:";
    for (auto& [what, count] : counts) text += " " + std::to_string(count) + " threads " + what + ";";
    text.pop_back();
    return text;
}

void run_block(int threads, std::size_t shared) {
    static std::vector<unsigned char> kept;
#if defined(SANITIZE_THREAD) || defined(SANITIZE_ADDRESS)
    // Memory of its own for every block, of the exact size. Static shared memory stays in its place: blocks then look
    // as if one waited for the other, so that they do not seem to use it at the same time.
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, shared)) std::abort();
    dynamic_shared = static_cast<unsigned char*>(memory);
    if (__start_block_shared != __stop_block_shared) acquired(&grid_end);
#else
    kept.resize(shared + GUARD + 128);
    dynamic_shared = kept.data() + (128 - reinterpret_cast<std::uintptr_t>(kept.data()) % 128);
    std::memset(dynamic_shared + shared, 0xa5, GUARD);
#endif
    poison(dynamic_shared, dynamic_shared + shared);
    poison(__start_block_shared, __stop_block_shared);
    warps.assign(threads / 32, Warp{});
    block_meeting = Meeting{};
    ready = Queue{};
    for (auto& fiber : fibers) {
#if defined(SANITIZE_THREAD)
        fiber.stack = new_stack();  // or else threads of two blocks seem to share it
#endif
        prepare(fiber.context, fiber.stack, body);
        fiber.waits_at = nullptr;
        fiber.ended = false;
        fiber.begun_copies = fiber.arrived_copies = fiber.groups = 0;
        ready.push(&fiber);
#if defined(SANITIZE_THREAD)
        fiber.sanitizer = __tsan_create_fiber(0);
        std::string name = "thread " + std::to_string(fiber.thread) + " of block (" + std::to_string(block.x) + ", " +
                           std::to_string(block.y) + ", " + std::to_string(block.z) + ")";
        __tsan_set_fiber_name(fiber.sanitizer, name.c_str());
#endif
    }
    go_on();
    if (!failure.empty()) return;
    for (auto& fiber : fibers) {
        if (!fiber.ended) {
            char text[64];
            std::snprintf(text, sizeof text, "block (%d, %d, %d): ", block.x, block.y, block.z);
            failure = text + who_waits();
            return;
        }
#if defined(SANITIZE_THREAD)
        __tsan_destroy_fiber(fiber.sanitizer);
        munmap(fiber.stack, STACK);
#endif
    }
#if !defined(SANITIZE_THREAD) && !defined(SANITIZE_ADDRESS)
    for (std::size_t i = 0; i < GUARD; i++) {
        if (dynamic_shared[shared + i] != 0xa5) {
            failure = "written past the end of dynamic shared memory, " + std::to_string(shared) + " bytes";
            return;
        }
    }
#endif
}
}  // namespace
}  // namespace emulation

// Checks that the compiler puts into a kernel with -fsanitize=alignment,bounds; both begin with the place.
struct Checked {
    const char* file;
    unsigned line, column;
};

static void checked(const Checked& at, const char* what) {
    std::string file = at.file;
    std::string text = std::string(what) + " at " + file.substr(file.rfind('/') + 1) + ":" + std::to_string(at.line);
    emulation::fail(text.c_str(), emulation::Where());
}

extern "C" void __ubsan_handle_type_mismatch_v1(Checked* at, void*) { checked(*at, "a misaligned address"); }
extern "C" void __ubsan_handle_out_of_bounds(Checked* at, void*) { checked(*at, "an index outside its array"); }

extern "C" const emulation::Kernel* find_kernel(const char* name) {
    auto kernel = emulated_kernels;
    while (kernel->name && std::strcmp(kernel->name, name)) kernel++;
    return kernel->name ? kernel : nullptr;
}

// Returns 0, or 1 with what went wrong in `message`.
extern "C" int launch(const char* name, const int* grid, int threads, std::size_t shared, void** slots, char* message,
                      std::size_t size) {
    using namespace emulation;
    static std::mutex one_at_a_time;
    std::lock_guard lock(one_at_a_time);
    emulation::grid = {grid[0], grid[1], grid[2]};
    kernel = find_kernel(name);
    arguments = slots;
    failure.clear();
    make_fibers(threads);
#if defined(SANITIZE_THREAD)
    outside.sanitizer = __tsan_get_current_fiber();
#endif
    for (int z = 0; z < grid[2]; z++) {
        for (int y = 0; y < grid[1]; y++) {
            for (int x = 0; x < grid[0] && failure.empty(); x++) {
                block = {x, y, z};
                run_block(threads, shared);
            }
        }
    }
    acquired(&grid_end);
    std::snprintf(message, size, "%s", failure.c_str());
    return !failure.empty();
}

#if defined(SANITIZE_THREAD) || defined(SANITIZE_ADDRESS)
// Arguments: a file and the kernel's name. The launch stands in the file, and the memory of its tensors is written back
// there. In int64: grid (3), threads, shared, count of memories, count of arguments; the size of each memory; two for every
// argument, a memory and an offset in it, or -1 and the bits of a number or null pointer. Then the memories themselves.
int main(int, char** names) {
    FILE* file = std::fopen(names[1], "r+b");
    auto number = [&] {
        std::int64_t value;
        if (std::fread(&value, 8, 1, file) != 1) std::abort();
        return value;
    };
    int grid[3];
    for (int& size : grid) size = static_cast<int>(number());
    int threads = static_cast<int>(number());
    auto shared = static_cast<std::size_t>(number());
    std::vector<std::size_t> sizes(number());
    std::vector<std::int64_t> bits(number());
    for (auto& size : sizes) size = number();
    std::vector<std::int64_t> memory_of(bits.size());
    for (std::size_t i = 0; i < bits.size(); i++) {
        memory_of[i] = number();
        bits[i] = number();
    }
    std::vector<unsigned char*> memories;
    long start = std::ftell(file);
    for (auto size : sizes) {
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, size)) std::abort();
        if (std::fread(memory, 1, size, file) != size) std::abort();
        memories.push_back(static_cast<unsigned char*>(memory));
    }
    std::vector<void*> slots;
    for (std::size_t i = 0; i < bits.size(); i++) {
        if (memory_of[i] >= 0) bits[i] += reinterpret_cast<std::int64_t>(memories[memory_of[i]]);
        slots.push_back(&bits[i]);
    }
    char message[1024];
    if (launch(names[2], grid, threads, shared, slots.data(), message, sizeof message)) {
        std::fprintf(stderr, "%s\n", message);
        return 3;
    }
    std::fseek(file, start, SEEK_SET);
    for (std::size_t i = 0; i < sizes.size(); i++) std::fwrite(memories[i], 1, sizes[i], file);
    return std::fclose(file) ? 4 : 0;
}
#endif
