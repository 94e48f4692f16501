// A driver for test_driver.py that writes down what the real cuda.bindings hands it, a line for each call, into the file
// that CALLS names. Types and numbers are those of cuda.h.

#include <dlfcn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uintptr_t current;  // context
static char module, function;

static int note(const char* format, ...) {
    FILE* file = fopen(getenv("CALLS"), "a");
    va_list arguments;
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    return fclose(file);
}

int cuGetProcAddress_v2(const char* symbol, void** found, int version, uint64_t flags, int* status) {
    char later[80];
    snprintf(later, sizeof later, "%s_v2", symbol);  // cuda.h renames these
    void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    *found = dlsym(self, later);
    if (!*found) *found = dlsym(self, symbol);
    if (status) *status = *found ? 0 : 1;
    return *found ? 0 : 500;
}

int cuGetProcAddress(const char* symbol, void** found, int version, uint64_t flags) {
    return cuGetProcAddress_v2(symbol, found, version, flags, NULL);
}

int cuInit(unsigned flags) { return note("cuInit %u\n", flags); }

int cuDriverGetVersion(int* version) {
    *version = 13000;
    return 0;
}

int cuDeviceGet(int* device, int ordinal) {
    *device = 10 + ordinal;
    return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
    *value = attribute == 16 ? 132 : attribute == 75 ? 9 : attribute == 76 ? 0 : -1;
    return 0;
}

int cuDevicePrimaryCtxRetain(uintptr_t* context, int device) {
    *context = 0x1000 + device;
    return 0;
}

int cuCtxGetCurrent(uintptr_t* context) {
    *context = current;
    return 0;
}

int cuCtxPushCurrent_v2(uintptr_t context) {
    current = context;
    return note("push %#zx\n", context);
}

int cuCtxPopCurrent_v2(uintptr_t* context) {
    *context = current;
    current = 0;
    return note("pop\n");
}

int cuStreamIsCapturing(uintptr_t stream, int* status) {
    *status = 0;
    return note("capturing %#zx\n", stream);
}

int cuModuleLoadData(void** loaded, const unsigned char* image) {
    *loaded = &module;
    return note("load %02x%c%c%c\n", image[0], image[1], image[2], image[3]);
}

int cuModuleGetFunction(void** found, void* from, const char* name) {
    *found = &function;
    return note("function %s %d\n", name, from == &module);
}

int cuFuncSetAttribute(void* of, int attribute, int value) {
    return note("attribute %d = %d %d\n", attribute, value, of == &function);
}

int cuLaunchKernel(
    void* kernel, unsigned x, unsigned y, unsigned z, unsigned threads_x, unsigned threads_y, unsigned threads_z,
    unsigned shared, uintptr_t stream, void** arguments, void** extra
) {
    note("launch %d of %u %u %u with %u %u %u, %u bytes, stream %#zx, extra %p\n", kernel == &function, x, y, z,
         threads_x, threads_y, threads_z, shared, stream, (void*)extra);
    note("arguments %#zx %#zx %d %.9g\n", *(uintptr_t*)arguments[0], *(uintptr_t*)arguments[1], *(int*)arguments[2],
         *(float*)arguments[3]);
    return shared > 232448;  // CUDA_ERROR_INVALID_VALUE
}

int cuGetErrorName(int error, const char** name) {
    *name = "CUDA_ERROR_INVALID_VALUE";
    return 0;
}

int cuGetErrorString(int error, const char** text) {
    *text = "invalid argument";
    return 0;
}
