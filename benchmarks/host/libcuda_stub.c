/* A libcuda.so.1 that does nothing, for timing the host's side of a launch without a GPU.
   Every kernel that is loaded is a function of its own; what the last launch asked for is kept. */
#include <stddef.h>
#include <stdint.h>

typedef int Result;

/* the beginning of CUlaunchConfig */
typedef struct {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
} Launch;

static uintptr_t functions = 0;
static long launches = 0;
static long last[4]; /* function, programs, threads, bytes of shared memory */

long stub_launches(void) { return launches; }
long stub_last(int i) { return last[i]; }

Result cuLaunchKernelEx(const Launch *launch, void *function, void **parameters, void **extra) {
    launches++;
    last[0] = (long)(uintptr_t)function;
    last[1] = launch->grid_x;
    last[2] = launch->block_x;
    last[3] = launch->shared_bytes;
    return 0;
}
Result cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)++functions;
    return 0;
}
Result cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) {
    *(uint64_t *)value = pointer;
    return 0;
}
Result cuFuncGetAttribute(int *value, int attribute, void *function) {
    *value = attribute == 0 ? 1024 : 32; /* threads a block; registers and the rest */
    return 0;
}
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = 232448; /* shared memory of an H100; nothing else is looked at */
    return 0;
}
Result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
Result cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
Result cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
Result cuCtxGetDevice(int *device) { *device = 0; return 0; }
Result cuCtxSetCurrent(void *context) { return 0; }
Result cuCtxGetLimit(size_t *value, int limit) { *value = 1 << 20; return 0; }
Result cuCtxSetLimit(int limit, size_t value) { return 0; }
Result cuModuleLoadData(void **module, const void *image) { *module = (void *)2; return 0; }
Result cuModuleUnload(void *module) { return 0; }
Result cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
Result cuFuncSetCacheConfig(void *function, int config) { return 0; }
Result cuGetErrorString(Result error, const char **text) { *text = "stub"; return 0; }
Result cuDriverGetVersion(int *version) { *version = 13000; return 0; }
Result cuOccupancyMaxActiveClusters(int *count, void *function, void *config) { *count = 1; return 0; }
Result cuTensorMapEncodeTiled(void) { return 0; }
Result cuTensorMapEncodeIm2col(void) { return 0; }
