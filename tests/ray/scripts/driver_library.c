/* Stands for the NVIDIA driver's management library where there is none: two devices, whose processes are the lines
   "DEVICE PID MIB" of the file that FAKE_NVML_PROCESSES names. Only what is called of nvml.h; anything else is missing, as
   in an old driver. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID = 2, INSUFFICIENT_SIZE = 7, DEVICES = 2 };
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } process_t;

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlInitWithFlags(unsigned int flags) { (void)flags; return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the stand-in"; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = DEVICES; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    if (index >= DEVICES) return INVALID;
    *device = (void *)(size_t)(index + 1);
    return SUCCESS;
}
int nvmlDeviceGetName(void *device, char *text, unsigned int length) {
    (void)device;
    snprintf(text, length, "NVIDIA L4");
    return SUCCESS;
}
int nvmlDeviceGetUUID(void *device, char *text, unsigned int length) {
    snprintf(text, length, "GPU-0000000%zu", (size_t)device - 1);
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, process_t *found) {
    unsigned int room = *count, seen = 0, at, pid, mib;
    const char *path = getenv("FAKE_NVML_PROCESSES");
    FILE *lines = path ? fopen(path, "r") : NULL;
    while (lines && fscanf(lines, "%u %u %u", &at, &pid, &mib) == 3) {
        if (at + 1 != (size_t)device) continue;
        if (found && seen < room) {
            memset(&found[seen], 0, sizeof *found);
            found[seen].pid = pid;
            found[seen].used = (unsigned long long)mib << 20;
        }
        seen++;
    }
    if (lines) fclose(lines);
    *count = seen;
    return seen > room ? INSUFFICIENT_SIZE : SUCCESS;
}
