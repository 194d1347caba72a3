/*
 * A stand-in for NVIDIA's management library: it exports the calls that the real nvidia-ml-py makes and answers
 * them from a text file named by NVML_STUB_SCENARIO. Built as libnvidia-ml.so.1 and put on LD_LIBRARY_PATH.
 *
 * One statement a line: `init CODE`, `driver TEXT`, `cuda NUMBER`, `count_error CODE`, then `gpu` or `slice` (of the
 * last gpu), followed by what it is. `text NAME HEX` gives a text as hexadecimal bytes, so that it can be anything.
 * A key that is left out answers NVML_ERROR_NOT_SUPPORTED. The structs are those of nvml.h.
 *
 * What changes with time goes by counts, so that a test is quick: of the waits for events, and of the questions about
 * a device's memory. `events MASK`, `xid NUMBER AFTER TIMES` (waits), `lost_after QUESTIONS CODE`, `frees QUESTIONS
 * BYTES` (its processes end, too), `recovery ACTION QUESTIONS`; of the whole driver `wait_error CODE` and `vanish
 * QUESTIONS CODE INITS`: after so many questions every call answers CODE, until INITS initialisations have failed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int nvmlReturn_t;
enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10, FUNCTION_NOT_FOUND = 13, ARGUMENT_VERSION_MISMATCH = 25
};
enum { DEVICES = 64, LINKS = 36, PROCESSES = 16, XIDS = 32, TEXT = 16384 };

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { char legacy[16]; unsigned int domain, bus, device, pciDeviceId, pciSubSystemId; char busId[32]; } Pci;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpuInstance, computeInstance; } Process;
typedef union { double d; unsigned int ui; unsigned long ul; unsigned long long ull; long long sll; int si; unsigned short us; } Value;
typedef struct { unsigned int id, scope; long long timestamp, latency; int type; nvmlReturn_t result; Value value; } Field;

typedef struct { struct Device *device; unsigned long long type, data; unsigned int gpuInstance, computeInstance; } Event;

typedef struct { int set, version, speed, remote; char bus[32]; } NvLink;
typedef struct { int number, after, times; } Xid;
typedef struct { int is_set; char bytes[TEXT]; } Text;
typedef struct Device {
    int is_slice, lost, handle_error, memory_error, no_memory_v2;
    int has_memory, has_capability, major, minor, architecture, generation, width, mig, compute, graphics;
    unsigned long long total, reserved, free;
    Text name, uuid, bus;
    NvLink links[LINKS];
    Process processes[PROCESSES]; /* the graphics ones last */
    struct Device *slices[8];
    int slice_count;
    int persistence, slowdown, compute_mode, chip_generation, fabric, ecc_errors, remapped;
    int questions, events, xid_count, lost_after, lost_code, frees_after, recovery, recovery_after;
    unsigned long long frees;
    Xid xids[XIDS];
} Device;
typedef struct { int waits, count; Device *devices[DEVICES]; } EventSet;

static Device *gpus[DEVICES];
static int gpu_count, init_code, count_error, open_count;
static int wait_error, set_count, questions, vanish_after, vanish_code, vanish_inits;
static long cuda;
static Text driver;

static void unhex(Text *text, const char *hex)
{
    size_t length = 0;
    unsigned int byte;
    text->is_set = 1;
    while (length < TEXT - 1 && sscanf(hex, "%2x", &byte) == 1) {
        text->bytes[length++] = (char)byte;
        hex += 2;
    }
    text->bytes[length] = 0;
}

static void read_statement(const char *line, Device **current)
{
    static char word[64], hex[2 * TEXT + 2];
    unsigned long long a, b, c;
    int i, j, k, l;
    Device *device = *current;
    if (sscanf(line, "init %d", &i) == 1) init_code = i;
    else if (sscanf(line, "count_error %d", &i) == 1) count_error = i;
    else if (sscanf(line, "cuda %d", &i) == 1) cuda = i;
    else if (!strncmp(line, "gpu", 3)) *current = gpus[gpu_count++] = calloc(1, sizeof(Device));
    else if (!strncmp(line, "slice", 5)) {
        Device *parent = gpus[gpu_count - 1];
        *current = parent->slices[parent->slice_count++] = calloc(1, sizeof(Device));
        (*current)->is_slice = 1;
    } else if (sscanf(line, "text %63s %32768s", word, hex) == 2) {
        if (!strcmp(word, "driver")) unhex(&driver, hex);
        else if (!strcmp(word, "name")) unhex(&device->name, hex);
        else if (!strcmp(word, "uuid")) unhex(&device->uuid, hex);
        else if (!strcmp(word, "bus")) unhex(&device->bus, hex);
    } else if (sscanf(line, "memory %llu %llu %llu", &a, &b, &c) == 3) {
        device->has_memory = 1, device->total = a, device->reserved = b, device->free = c;
    } else if (sscanf(line, "capability %d %d", &i, &j) == 2) {
        device->has_capability = 1, device->major = i, device->minor = j;
    } else if (sscanf(line, "architecture %d", &i) == 1) device->architecture = i;
    else if (sscanf(line, "pcie %d %d", &i, &j) == 2) device->generation = i, device->width = j;
    else if (sscanf(line, "persistence %d", &i) == 1) device->persistence = i + 1;
    else if (sscanf(line, "slowdown %d", &i) == 1) device->slowdown = i;
    else if (sscanf(line, "compute_mode %d", &i) == 1) device->compute_mode = i;
    else if (sscanf(line, "chip_generation %d", &i) == 1) device->chip_generation = i;
    else if (sscanf(line, "fabric %d", &i) == 1) device->fabric = i;
    else if (sscanf(line, "ecc_errors %d", &i) == 1) device->ecc_errors = i;
    else if (sscanf(line, "remapped %d", &i) == 1) device->remapped = i;
    else if (sscanf(line, "mig %d", &i) == 1) device->mig = i + 1;
    else if (sscanf(line, "lost %d", &i) == 1) device->lost = i;
    else if (sscanf(line, "handle_error %d", &i) == 1) device->handle_error = i;
    else if (sscanf(line, "memory_error %d", &i) == 1) device->memory_error = i;
    else if (!strncmp(line, "no_memory_v2", 12)) device->no_memory_v2 = 1;
    else if (sscanf(line, "wait_error %d", &i) == 1) wait_error = i;
    else if (sscanf(line, "vanish %d %d %d", &i, &j, &k) == 3) vanish_after = i, vanish_code = j, vanish_inits = k;
    else if (sscanf(line, "events %d", &i) == 1) device->events = i;
    else if (sscanf(line, "xid %d %d %d", &i, &j, &k) == 3) device->xids[device->xid_count++] = (Xid){i, j, k};
    else if (sscanf(line, "lost_after %d %d", &i, &j) == 2) device->lost_after = i, device->lost_code = j;
    else if (sscanf(line, "frees %d %llu", &i, &a) == 2) device->frees_after = i, device->frees = a;
    else if (sscanf(line, "recovery %d %d", &i, &j) == 2) device->recovery = i, device->recovery_after = j;
    else if (sscanf(line, "compute %d %llu", &i, &a) == 2) {
        device->processes[device->compute].pid = (unsigned int)i;
        device->processes[device->compute++].used = a;
    } else if (sscanf(line, "graphics %d %llu", &i, &a) == 2) {
        Process *process = &device->processes[PROCESSES - 1 - device->graphics++];
        process->pid = (unsigned int)i, process->used = a;
    } else if (sscanf(line, "nvlink %d %d %d %d %31s", &i, &j, &k, &l, word) == 5) {
        NvLink *link = &device->links[i];
        link->set = 1, link->version = j, link->speed = k, link->remote = l;
        snprintf(link->bus, sizeof link->bus, "%.31s", word);
    } else if (line[0] != '\n' && line[0] != '#') {
        fprintf(stderr, "nvml stub: unknown statement: %s", line);
        abort();
    }
}

static int vanished(void) { return vanish_after > 0 && questions >= vanish_after; }

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    static char line[2 * TEXT + 256];
    const char *path = getenv("NVML_STUB_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    Device *current = NULL;
    static int is_read;
    (void)flags;
    if (!file) return UNINITIALIZED;
    while (!is_read && fgets(line, sizeof line, file)) read_statement(line, &current); /* handles outlive a shutdown */
    is_read = 1;
    fclose(file);
    if (vanished()) {
        if (vanish_inits-- > 0) return vanish_code;
        vanish_after = 0;
        for (int i = 0; i < gpu_count; i++) gpus[i]->questions = 0; /* loaded anew, the devices are well */
    }
    if (init_code == SUCCESS) open_count++;
    return init_code;
}

/* The count of open minus closed is left behind when the library ends, so that a test can see a shutdown. */
nvmlReturn_t nvmlShutdown(void) { open_count--; return SUCCESS; }
int nvml_stub_open_count(void) { return open_count; }
int nvml_stub_set_count(void) { return set_count; }

const char *nvmlErrorString(nvmlReturn_t code) { (void)code; return "an error of the stub"; }

static nvmlReturn_t give(const Text *text, char *buffer, unsigned int length)
{
    if (!text->is_set) return NOT_SUPPORTED;
    strncpy(buffer, text->bytes, length); /* as long as the caller's buffer: no end of text when it is full */
    return SUCCESS;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned int length) { return give(&driver, text, length); }
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    if (!cuda) return NOT_SUPPORTED;
    *version = (int)cuda;
    return SUCCESS;
}
nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

#define OPEN() do { if (open_count <= 0) return UNINITIALIZED; if (vanished()) return vanish_code; } while (0)

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    OPEN();
    *count = (unsigned int)gpu_count;
    return count_error;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, Device **device)
{
    OPEN();
    if (index >= (unsigned int)gpu_count) return INVALID_ARGUMENT;
    *device = gpus[index];
    return gpus[index]->handle_error;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, Device **device)
{
    OPEN();
    for (int i = 0; i < gpu_count; i++) {
        for (int part = -1; part < gpus[i]->slice_count; part++) {
            *device = part < 0 ? gpus[i] : gpus[i]->slices[part];
            if ((*device)->uuid.is_set && !strcmp((*device)->uuid.bytes, uuid)) return (*device)->handle_error;
        }
    }
    return NOT_FOUND;
}

static nvmlReturn_t gone(const Device *device)
{
    if (device->lost_code && device->questions >= device->lost_after) return device->lost_code;
    return device->lost;
}
#define ALIVE(device) do { OPEN(); if (gone(device)) return gone(device); } while (0)

/* One question about memory, which is what time goes by. Whether the device has freed its memory since. */
static int asked(Device *device)
{
    questions++;
    return ++device->questions > device->frees_after && device->frees_after;
}

nvmlReturn_t nvmlDeviceGetName(Device *device, char *text, unsigned int length)
{
    ALIVE(device);
    return give(&device->name, text, length);
}

nvmlReturn_t nvmlDeviceGetUUID(Device *device, char *text, unsigned int length)
{
    ALIVE(device);
    return give(&device->uuid, text, length);
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(Device *device, Memory *memory)
{
    ALIVE(device);
    if (device->memory_error) return device->memory_error;
    if (!device->has_memory) return NOT_SUPPORTED;
    if (asked(device)) device->free = device->frees;
    memory->total = device->total, memory->free = device->free, memory->used = device->total - device->free;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *memory)
{
    ALIVE(device);
    if (device->no_memory_v2) return FUNCTION_NOT_FOUND;
    if (memory->version != (sizeof(MemoryV2) | 2u << 24)) return ARGUMENT_VERSION_MISMATCH;
    if (device->memory_error) return device->memory_error;
    if (!device->has_memory) return NOT_SUPPORTED;
    if (asked(device)) device->free = device->frees;
    memory->total = device->total, memory->free = device->free, memory->reserved = device->reserved;
    memory->used = device->total - device->free - device->reserved;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor)
{
    ALIVE(device);
    if (!device->has_capability) return NOT_SUPPORTED;
    *major = device->major, *minor = device->minor;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetArchitecture(Device *device, unsigned int *architecture)
{
    ALIVE(device);
    *architecture = (unsigned int)device->architecture;
    return device->architecture ? SUCCESS : NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(Device *device, Pci *pci)
{
    ALIVE(device);
    return give(&device->bus, pci->busId, sizeof pci->busId);
}

static nvmlReturn_t number(Device *device, int value, unsigned int *out)
{
    ALIVE(device);
    *out = (unsigned int)value;
    return value ? SUCCESS : NOT_SUPPORTED;
}
nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(Device *device, unsigned int *out) { return number(device, device->generation, out); }
nvmlReturn_t nvmlDeviceGetGpuMaxPcieLinkGeneration(Device *device, unsigned int *out) { return number(device, device->chip_generation, out); }
nvmlReturn_t nvmlDeviceGetPersistenceMode(Device *device, unsigned int *mode)
{
    nvmlReturn_t code = number(device, device->persistence, mode);
    if (code == SUCCESS) *mode -= 1;
    return code;
}
nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(Device *device, unsigned long long *reasons)
{
    ALIVE(device);
    *reasons = (unsigned long long)device->slowdown;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetComputeMode(Device *device, unsigned int *mode)
{
    ALIVE(device);
    *mode = (unsigned int)device->compute_mode;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTotalEccErrors(Device *device, int type, int counter, unsigned long long *count)
{
    ALIVE(device);
    if (type != 1 || counter != 0) return INVALID_ARGUMENT; /* uncorrected, since the driver was loaded */
    *count = (unsigned long long)device->ecc_errors;
    return SUCCESS;
}
/* `remapped` is the number of rows; 1 of them is pending where it is odd, and the last one failed beyond 100. */
nvmlReturn_t nvmlDeviceGetRemappedRows(Device *device, unsigned int *corrected, unsigned int *uncorrected, unsigned int *pending, unsigned int *failed)
{
    ALIVE(device);
    *corrected = 0, *uncorrected = (unsigned int)device->remapped;
    *pending = device->remapped % 2 != 0, *failed = device->remapped > 100;
    return SUCCESS;
}
typedef struct { unsigned char cluster[16]; nvmlReturn_t status; unsigned int clique, state; } Fabric;
nvmlReturn_t nvmlDeviceGetGpuFabricInfo(Device *device, Fabric *info)
{
    ALIVE(device);
    info->state = (unsigned int)device->fabric, info->status = SUCCESS;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(Device *device, unsigned int *out) { return number(device, device->width ? 16 : 0, out); }
nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(Device *device, unsigned int *out) { return number(device, device->width, out); }

static nvmlReturn_t list(Device *device, int compute, unsigned int *count, Process *out)
{
    int held = compute ? device->compute : device->graphics;
    ALIVE(device);
    if (!device->name.is_set) return NOT_SUPPORTED;
    if (held == 0 || (device->frees_after && device->questions > device->frees_after)) { *count = 0; return SUCCESS; }
    if (*count < (unsigned int)held) { *count = (unsigned int)held; return INSUFFICIENT_SIZE; }
    *count = (unsigned int)held;
    for (int i = 0; i < held; i++) out[i] = device->processes[compute ? i : PROCESSES - 1 - i];
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned int *count, Process *out) { return list(device, 1, count, out); }
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(Device *device, unsigned int *count, Process *out) { return list(device, 0, count, out); }

nvmlReturn_t nvmlDeviceGetMigMode(Device *device, unsigned int *current, unsigned int *pending)
{
    ALIVE(device);
    if (!device->mig) return NOT_SUPPORTED;
    *current = *pending = (unsigned int)device->mig - 1;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned int *count) { return number(device, device->mig ? 7 : 0, count); }
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned int index, Device **slice)
{
    ALIVE(device);
    /* Instances need not lie together: every second place is empty, as after one was destroyed. */
    if (index % 2 || index / 2 >= (unsigned int)device->slice_count) return NOT_FOUND;
    *slice = device->slices[index / 2];
    return SUCCESS;
}

static nvmlReturn_t find(Device *device, unsigned int index, NvLink **link)
{
    ALIVE(device);
    if (index >= LINKS) return INVALID_ARGUMENT;
    *link = &device->links[index];
    return (*link)->set ? SUCCESS : NOT_SUPPORTED;
}
nvmlReturn_t nvmlDeviceGetNvLinkState(Device *device, unsigned int index, unsigned int *active)
{
    NvLink *link;
    nvmlReturn_t code = find(device, index, &link);
    if (code == SUCCESS) *active = link->version != 0; /* version 0: a link that is there and down */
    return code;
}
nvmlReturn_t nvmlDeviceGetNvLinkVersion(Device *device, unsigned int index, unsigned int *version)
{
    NvLink *link;
    nvmlReturn_t code = find(device, index, &link);
    if (code == SUCCESS) *version = (unsigned int)link->version;
    return code;
}
nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(Device *device, unsigned int index, int *type)
{
    NvLink *link;
    nvmlReturn_t code = find(device, index, &link);
    if (code == SUCCESS) *type = link->remote;
    return code;
}
nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(Device *device, unsigned int index, Pci *pci)
{
    NvLink *link;
    nvmlReturn_t code = find(device, index, &link);
    if (code == SUCCESS) snprintf(pci->busId, sizeof pci->busId, "%s", link->bus);
    return code;
}
nvmlReturn_t nvmlDeviceGetFieldValues(Device *device, int count, Field *fields)
{
    ALIVE(device);
    for (int i = 0; i < count; i++) {
        NvLink *link;
        if (fields[i].id == 230 && device->recovery) {
            fields[i].result = SUCCESS, fields[i].type = 1;
            fields[i].value.ui = device->questions >= device->recovery_after ? (unsigned int)device->recovery : 0;
            continue;
        }
        fields[i].result = fields[i].id == 164 ? find(device, fields[i].scope, &link) : NOT_SUPPORTED;
        if (fields[i].result == SUCCESS && !link->speed) fields[i].result = NOT_SUPPORTED;
        if (fields[i].result != SUCCESS) continue;
        fields[i].type = 1, fields[i].value.ui = (unsigned int)link->speed;
    }
    return SUCCESS;
}

nvmlReturn_t nvmlEventSetCreate(EventSet **set)
{
    OPEN();
    *set = calloc(1, sizeof(EventSet));
    set_count++;
    return SUCCESS;
}
nvmlReturn_t nvmlEventSetFree(EventSet *set) { free(set); set_count--; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetSupportedEventTypes(Device *device, unsigned long long *types)
{
    ALIVE(device);
    *types = (unsigned long long)device->events;
    return device->events ? SUCCESS : NOT_SUPPORTED;
}
nvmlReturn_t nvmlDeviceRegisterEvents(Device *device, unsigned long long types, EventSet *set)
{
    ALIVE(device);
    if (types & ~(unsigned long long)device->events) return NOT_SUPPORTED;
    set->devices[set->count++] = device;
    return SUCCESS;
}
nvmlReturn_t nvmlEventSetWait_v2(EventSet *set, Event *event, unsigned int milliseconds)
{
    OPEN();
    if (wait_error) return wait_error;
    set->waits++;
    for (int i = 0; i < set->count; i++) {
        for (int j = 0; j < set->devices[i]->xid_count; j++) {
            Xid *xid = &set->devices[i]->xids[j];
            if (set->waits <= xid->after || xid->times <= 0) continue;
            xid->times--;
            *event = (Event){set->devices[i], 8, (unsigned long long)xid->number, ~0u, ~0u};
            return SUCCESS;
        }
    }
    usleep(milliseconds * 1000);
    return TIMEOUT;
}
