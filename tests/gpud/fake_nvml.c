/* A driver library for tests: NVML's documented ABI over GPUs whose state is a file that every process maps.
 *
 * The file's layout is shared with tests/fake_nvml.py. As on hardware, locks outlive the process that set them.
 * Built with -DOLD_DRIVER it lacks the calls that old drivers lack. A call's faults, by GPU and function: an error, how
 * often (0: every time), and a delay before the answer; a delay of half an hour hangs until the test takes it away. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MAX_GPUS 16
#define MAX_CLOCKS 128
#define RING 512
#define SUCCESS 0
enum { NOT_SUPPORTED = 3, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, UNINITIALIZED = 1, GPU_IS_LOST = 15 };
enum { FN_LOCK, FN_RESET, FN_CLOCK, FN_POWER, FN_FIELDS, FN_ENERGY, FN_TEMP, FN_UTIL, FN_LIMIT_GET, FN_LIMIT_SET, FN_REASONS,
       FN_CLOCKS, FN_HANDLE, FN_NAME, FN_PERSIST, FN_MIG, FN_PROCESSES, FN_LIMITS, FN_COUNT_FUNCTIONS };

typedef struct { int32_t error, times; int64_t delay_us; } Fault;
typedef struct { int64_t at_ns; int32_t kind, pid, low, high; } Set;
typedef struct {
    char uuid[96], name[96];
    int32_t clocks, persistence, mig, processes;
    int32_t clock[MAX_CLOCKS];
    int32_t boost_mhz, idle, idle_mhz, cap_mhz, stuck, lost;
    int64_t settle_ns;
    int32_t lock_low, lock_high, before_mhz, pad0;
    int64_t locked_at_ns;
    uint64_t extra_reasons;
    int32_t power_base_mw, power_busy_mw, limit_mw, limit_low_mw, limit_default_mw, limit_high_mw;
    int32_t energy_frozen, temperature;
    int64_t energy_base_mj, energy_from_ns;
    int64_t lock_calls, reset_calls, limit_calls, energy_calls;
    int32_t in_set, overlaps;
    int32_t sets, process_pid[7];
    Fault fault[24];
    Set ring[RING];
} Gpu;
typedef struct {
    char magic[8];
    int32_t init_error, count, epoch, pad;
    Gpu gpu[MAX_GPUS];
} State;

static State *state;
static char mapped[512];
static int initialized;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int map_state(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    if (!path) return 9; /* driver not loaded */
    if (state && strcmp(mapped, path) == 0) return SUCCESS;
    int file = open(path, O_RDWR);
    if (file < 0) return 9;
    void *at = mmap(NULL, sizeof(State), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (at == MAP_FAILED) return 999;
    state = at;
    strncpy(mapped, path, sizeof mapped - 1);
    return SUCCESS;
}

static int answer(Gpu *gpu, int function) {
    if (!initialized || !state) return UNINITIALIZED;
    if (gpu < state->gpu || gpu >= state->gpu + MAX_GPUS) return INVALID_ARGUMENT;
    Fault *fault = &gpu->fault[function];
    int64_t began = now_ns();
    while (now_ns() - began < fault->delay_us * 1000) {
        int64_t left_us = fault->delay_us - (now_ns() - began) / 1000;
        if (left_us > 0) usleep(left_us > 5000 ? 5000 : left_us);
    }
    if (gpu->lost) return GPU_IS_LOST;
    if (fault->error) {
        int error = fault->error;
        if (fault->times > 0 && --fault->times == 0) fault->error = 0;
        return error;
    }
    return SUCCESS;
}
#define ASK(function) do { int ret_ = answer(gpu, function); if (ret_) return ret_; } while (0)

static int sm_mhz(Gpu *gpu) {
    int64_t since = now_ns() - gpu->locked_at_ns;
    if (since < gpu->settle_ns && gpu->before_mhz) return gpu->before_mhz;
    int mhz = gpu->idle ? gpu->idle_mhz : gpu->boost_mhz;
    if (!gpu->stuck && gpu->lock_high && mhz > gpu->lock_high) mhz = gpu->lock_high;
    if (!gpu->idle && gpu->cap_mhz && mhz > gpu->cap_mhz) mhz = gpu->cap_mhz;
    return mhz;
}

static int power_mw(Gpu *gpu) {
    if (gpu->idle) return gpu->power_base_mw;
    int64_t mw = gpu->power_base_mw + (int64_t)gpu->power_busy_mw * sm_mhz(gpu) / (gpu->boost_mhz ? gpu->boost_mhz : 1);
    return mw > gpu->limit_mw ? gpu->limit_mw : (int)mw;
}

static int64_t energy_mj(Gpu *gpu) {
    int64_t now = now_ns() / 100000000LL * 100000000LL; /* it moves every 100 ms */
    int64_t since = now - gpu->energy_from_ns;
    return gpu->energy_base_mj + (since > 0 ? since / 1000 * power_mw(gpu) / 1000000 : 0);
}
static void settle_energy(Gpu *gpu) {
    if (gpu->energy_frozen) return;
    gpu->energy_base_mj = energy_mj(gpu);
    gpu->energy_from_ns = now_ns() / 100000000LL * 100000000LL;
}

static void note(Gpu *gpu, int kind, int low, int high) {
    int place = __atomic_fetch_add(&gpu->sets, 1, __ATOMIC_SEQ_CST) % RING;
    gpu->ring[place] = (Set){now_ns(), kind, getpid(), low, high};
}
static void enter(Gpu *gpu) { if (__atomic_fetch_add(&gpu->in_set, 1, __ATOMIC_SEQ_CST) > 0) gpu->overlaps++; }
static int leave(Gpu *gpu, int ret) { __atomic_fetch_sub(&gpu->in_set, 1, __ATOMIC_SEQ_CST); return ret; }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int ret = map_state();
    if (ret) return ret;
    if (state->init_error) return state->init_error;
    initialized = 1;
    return SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { if (!initialized) return UNINITIALIZED; initialized = 0; return SUCCESS; }
const char *nvmlErrorString(int ret) { static char text[32]; snprintf(text, sizeof text, "NVML error %d", ret); return text; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "575.57.08"); return SUCCESS; }
int nvmlSystemGetNVMLVersion(char *text, unsigned length) { snprintf(text, length, "12.575.57.08"); return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!initialized) return UNINITIALIZED;
    if (state->init_error) return state->init_error;
    *count = state->count;
    return SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu **device) {
    if (!initialized) return UNINITIALIZED;
    if ((int)index >= state->count) return INVALID_ARGUMENT;
    Gpu *gpu = &state->gpu[index];
    ASK(FN_HANDLE);
    *device = gpu;
    return SUCCESS;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Gpu **device) {
    if (!initialized) return UNINITIALIZED;
    for (int index = 0; index < state->count; index++)
        if (strcmp(state->gpu[index].uuid, uuid) == 0) {
            Gpu *gpu = &state->gpu[index];
            ASK(FN_HANDLE);
            *device = gpu;
            return SUCCESS;
        }
    return NOT_FOUND;
}
int nvmlDeviceGetIndex(Gpu *gpu, unsigned *index) { ASK(FN_HANDLE); *index = gpu - state->gpu; return SUCCESS; }
int nvmlDeviceGetUUID(Gpu *gpu, char *text, unsigned length) { ASK(FN_NAME); snprintf(text, length, "%s", gpu->uuid); return SUCCESS; }
int nvmlDeviceGetName(Gpu *gpu, char *text, unsigned length) { ASK(FN_NAME); snprintf(text, length, "%s", gpu->name); return SUCCESS; }

int nvmlDeviceGetSupportedMemoryClocks(Gpu *gpu, unsigned *count, unsigned *clocks) {
    ASK(FN_CLOCKS);
    if (!clocks || *count < 2) { *count = 2; return INSUFFICIENT_SIZE; }
    clocks[0] = 2619; clocks[1] = 1593;
    *count = 2;
    return SUCCESS;
}
int nvmlDeviceGetSupportedGraphicsClocks(Gpu *gpu, unsigned memory_mhz, unsigned *count, unsigned *clocks) {
    ASK(FN_CLOCKS);
    if (memory_mhz != 2619 && memory_mhz != 1593) return NOT_FOUND;
    if (!clocks || (int)*count < gpu->clocks) { *count = gpu->clocks; return INSUFFICIENT_SIZE; }
    for (int place = 0; place < gpu->clocks; place++) clocks[place] = gpu->clock[gpu->clocks - 1 - place]; /* descending */
    *count = gpu->clocks;
    return SUCCESS;
}
int nvmlDeviceSetGpuLockedClocks(Gpu *gpu, unsigned low, unsigned high) {
    if (!initialized || !state) return UNINITIALIZED;
    enter(gpu);
    gpu->lock_calls++;
    int ret = answer(gpu, FN_LOCK);
    if (ret) return leave(gpu, ret);
    if (low > high) return leave(gpu, INVALID_ARGUMENT);
    settle_energy(gpu);
    gpu->before_mhz = sm_mhz(gpu);
    gpu->lock_low = low; gpu->lock_high = high; gpu->locked_at_ns = now_ns();
    note(gpu, 1, low, high);
    return leave(gpu, SUCCESS);
}
int nvmlDeviceResetGpuLockedClocks(Gpu *gpu) {
    if (!initialized || !state) return UNINITIALIZED;
    enter(gpu);
    gpu->reset_calls++;
    int ret = answer(gpu, FN_RESET);
    if (ret) return leave(gpu, ret);
    settle_energy(gpu);
    gpu->before_mhz = sm_mhz(gpu);
    gpu->lock_low = gpu->lock_high = 0; gpu->locked_at_ns = now_ns();
    note(gpu, 2, 0, 0);
    return leave(gpu, SUCCESS);
}
int nvmlDeviceGetClockInfo(Gpu *gpu, unsigned type, unsigned *mhz) {
    ASK(FN_CLOCK);
    *mhz = type == 2 ? 2619 : (unsigned)sm_mhz(gpu);
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(Gpu *gpu, unsigned *mw) { ASK(FN_POWER); *mw = power_mw(gpu); return SUCCESS; }
int nvmlDeviceGetTotalEnergyConsumption(Gpu *gpu, unsigned long long *mj) {
    gpu->energy_calls++;
    ASK(FN_ENERGY);
    if (gpu->energy_frozen == 1) { gpu->energy_base_mj = energy_mj(gpu); gpu->energy_frozen = 2; }
    *mj = gpu->energy_frozen ? gpu->energy_base_mj : energy_mj(gpu);
    return SUCCESS;
}
int nvmlDeviceGetTemperature(Gpu *gpu, unsigned sensor, unsigned *degrees) { (void)sensor; ASK(FN_TEMP); *degrees = gpu->temperature; return SUCCESS; }
typedef struct { unsigned version, sensor; int temperature; } Temperature;
typedef struct { unsigned gpu, memory; } Utilization;
int nvmlDeviceGetUtilizationRates(Gpu *gpu, Utilization *rates) { ASK(FN_UTIL); rates->gpu = gpu->idle ? 0 : 97; rates->memory = 40; return SUCCESS; }
int nvmlDeviceGetPowerManagementLimit(Gpu *gpu, unsigned *mw) { ASK(FN_LIMIT_GET); *mw = gpu->limit_mw; return SUCCESS; }
int nvmlDeviceGetPowerManagementDefaultLimit(Gpu *gpu, unsigned *mw) { ASK(FN_LIMITS); *mw = gpu->limit_default_mw; return SUCCESS; }
int nvmlDeviceGetPowerManagementLimitConstraints(Gpu *gpu, unsigned *low, unsigned *high) {
    ASK(FN_LIMITS); *low = gpu->limit_low_mw; *high = gpu->limit_high_mw; return SUCCESS;
}
int nvmlDeviceSetPowerManagementLimit(Gpu *gpu, unsigned mw) {
    if (!initialized || !state) return UNINITIALIZED;
    enter(gpu);
    gpu->limit_calls++;
    int ret = answer(gpu, FN_LIMIT_SET);
    if (ret) return leave(gpu, ret);
    if ((int)mw < gpu->limit_low_mw || (int)mw > gpu->limit_high_mw) return leave(gpu, INVALID_ARGUMENT);
    settle_energy(gpu);
    gpu->limit_mw = mw;
    note(gpu, 3, mw, mw);
    return leave(gpu, SUCCESS);
}
static unsigned long long reasons(Gpu *gpu) {
    unsigned long long found = gpu->extra_reasons;
    if (gpu->idle) found |= 1;
    else if (gpu->cap_mhz && sm_mhz(gpu) == gpu->cap_mhz) found |= 4;
    return found;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(Gpu *gpu, unsigned long long *bits) { ASK(FN_REASONS); *bits = reasons(gpu); return SUCCESS; }
int nvmlDeviceGetPersistenceMode(Gpu *gpu, unsigned *mode) { ASK(FN_PERSIST); *mode = gpu->persistence; return SUCCESS; }
int nvmlDeviceGetMigMode(Gpu *gpu, unsigned *current, unsigned *pending) {
    ASK(FN_MIG); if (gpu->mig < 0) return NOT_SUPPORTED; *current = *pending = gpu->mig; return SUCCESS;
}
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(Gpu *gpu, unsigned *count, Process *processes) {
    ASK(FN_PROCESSES);
    if (gpu->processes == 0) { *count = 0; return SUCCESS; }
    if (!processes || (int)*count < gpu->processes) { *count = gpu->processes; return INSUFFICIENT_SIZE; }
    *count = gpu->processes;
    for (int place = 0; place < gpu->processes; place++)
        processes[place] = (Process){gpu->process_pid[place], 1 << 20, 0xFFFFFFFF, 0xFFFFFFFF};
    return SUCCESS;
}
typedef struct { unsigned long long at_us; union { unsigned small; unsigned long long large; } value; } Sample;
int nvmlDeviceGetSamples(Gpu *gpu, unsigned kind, unsigned long long since_us, unsigned *type, unsigned *count, Sample *samples) {
    ASK(FN_POWER);
    if (kind != 0) return NOT_SUPPORTED;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    unsigned long long now_us = t.tv_sec * 1000000ULL + t.tv_nsec / 1000;
    *type = 1;
    if (!samples) { *count = 120; return SUCCESS; }
    unsigned found = 0;
    for (unsigned long long at = now_us / 20000 * 20000 - 119 * 20000; at <= now_us && found < *count; at += 20000)
        if (at > since_us) samples[found++] = (Sample){at, {.large = power_mw(gpu)}};
    *count = found;
    return found ? SUCCESS : NOT_FOUND;
}
#ifndef OLD_DRIVER
int nvmlDeviceGetTemperatureV(Gpu *gpu, Temperature *asked) { ASK(FN_TEMP); asked->temperature = gpu->temperature; return SUCCESS; }
int nvmlDeviceGetCurrentClocksEventReasons(Gpu *gpu, unsigned long long *bits) { ASK(FN_REASONS); *bits = reasons(gpu); return SUCCESS; }
typedef union { double real; unsigned small; unsigned long large; unsigned long long huge; } Value;
typedef struct { uint32_t field, scope; int64_t at, latency; unsigned type, ret; Value value; } Field;
int nvmlDeviceGetFieldValues(Gpu *gpu, int count, Field *fields) {
    ASK(FN_FIELDS);
    for (int place = 0; place < count; place++) {
        Field *field = &fields[place];
        field->at = now_ns() / 1000; field->latency = 1; field->type = 1; field->ret = SUCCESS;
        if (field->field == 185 || field->field == 186) field->value.small = power_mw(gpu);
        else field->ret = NOT_SUPPORTED;
    }
    return SUCCESS;
}
#endif
