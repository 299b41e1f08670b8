/* info.c: `doublep info`: what the library found on this machine, what it was built with, and what the machine can do. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <hwloc.h>
#include <jansson.h>
#include <oneapi/dnnl/dnnl.h>

#include "commands.h"
#include "doublep/doublep.h"
#include "machine.h"
#include "options.h"

typedef struct info_options {
    bool json, bandwidth, peak;
} info_options;

typedef struct measurements {
    double read_one, read_all; /* bytes per second; 0: not asked for */
    double peak_one, peak_all; /* f32 operations per second */
} measurements;

enum { KEY_JSON = 0x200, KEY_BANDWIDTH, KEY_PEAK };
static const size_t bandwidth_bytes = 256u << 20; /* per thread: past any cache */

static const struct argp_option options_list[] = {
    {"json", KEY_JSON, NULL, 0, "Print one JSON object", 0},
    {"bandwidth", KEY_BANDWIDTH, NULL, 0, "Measure how fast memory is read, with one thread and with all", 0},
    {"peak", KEY_PEAK, NULL, 0, "Measure f32 multiply-adds in registers, with one thread and with all", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    info_options *const o = state->input;
    switch (key) {
    case KEY_JSON:
        o->json = true;
        return 0;
    case KEY_BANDWIDTH:
        o->bandwidth = true;
        return 0;
    case KEY_PEAK:
        o->peak = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "\"%s\" is not an option", arg);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* The kernel's setting: the word in brackets in "always [madvise] never". */
static void read_huge_page_setting(char *setting, size_t size)
{
    char line[128] = "";
    snprintf(setting, size, "unknown");
    FILE *const file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
    if (!file)
        return;
    const char *const start = fgets(line, sizeof(line), file) ? strchr(line, '[') : NULL;
    if (start)
        snprintf(setting, size, "%.*s", (int)strcspn(start + 1, "]"), start + 1);
    fclose(file);
}

static void read_cpu_name(char *name, size_t size)
{
    snprintf(name, size, "unknown");
    hwloc_topology_t topology;
    if (hwloc_topology_init(&topology) != 0)
        return;
    if (hwloc_topology_load(topology) == 0) {
        const hwloc_obj_t package = hwloc_get_obj_by_type(topology, HWLOC_OBJ_PACKAGE, 0);
        const char *const model = package ? hwloc_obj_get_info_by_name(package, "CPUModel") : NULL;
        if (model)
            snprintf(name, size, "%s", model);
    }
    hwloc_topology_destroy(topology);
}

static measurements measure(const info_options *o, const dp_runtime_info *info)
{
    measurements m = {0};
    if (o->bandwidth) {
        m.read_one = machine_read_bandwidth(1, bandwidth_bytes);
        m.read_all = machine_read_bandwidth(info->n_threads, bandwidth_bytes);
    }
    if (o->peak) {
        m.peak_one = machine_peak_flops(1);
        m.peak_all = machine_peak_flops(info->n_threads);
    }
    return m;
}

typedef struct facts {
    dp_runtime_info runtime;
    char cpu[128], huge_pages[32], onednn[32], hwloc[32];
    int openmp;
    measurements measured;
} facts;

static void collect_versions(facts *f)
{
    const dnnl_version_t *const dnnl = dnnl_version();
    const unsigned hwloc = hwloc_get_api_version();
    snprintf(f->onednn, sizeof(f->onednn), "%d.%d.%d", dnnl->major, dnnl->minor, dnnl->patch);
    snprintf(f->hwloc, sizeof(f->hwloc), "%u.%u.%u", hwloc >> 16, hwloc >> 8 & 0xff, hwloc & 0xff);
    f->openmp = _OPENMP;
}

static void print_text(const info_options *o, const facts *f)
{
    const dp_runtime_info *const r = &f->runtime;
    const unsigned version = dp_version();
    printf("doublep       %u.%u.%u\n", version / 10000, version / 100 % 100, version % 100);
    printf("CPU           %s\n", f->cpu);
    printf("ISA           %s%s; available:", dp_isa_name(r->isa), r->bf16_instructions ? " with BF16 instructions" : "");
    for (int isa = DP_ISA_SCALAR; isa < DP_ISA_COUNT; isa++)
        if (r->isas_available & 1u << isa)
            printf(" %s", dp_isa_name((dp_isa)isa));
    printf("\ncores         %d (%d hardware threads), %d NUMA node%s; %d threads by default\n", r->n_cores, r->n_pus,
           r->n_numa_nodes, r->n_numa_nodes == 1 ? "" : "s", r->n_threads);
    printf("caches        L1d %llu KiB, L2 %llu KiB, L3 %llu KiB\n", (unsigned long long)r->l1d_bytes / 1024,
           (unsigned long long)r->l2_bytes / 1024, (unsigned long long)r->l3_bytes / 1024);
    printf("huge pages    kernel: %s; in use: %llu KiB\n", f->huge_pages, (unsigned long long)r->huge_page_bytes / 1024);
    printf("libraries     oneDNN %s, hwloc %s, OpenMP %d\n", f->onednn, f->hwloc, f->openmp);
    if (o->bandwidth)
        printf("read          %.2f GB/s with 1 thread, %.2f GB/s with %d\n", f->measured.read_one * 1e-9,
               f->measured.read_all * 1e-9, r->n_threads);
    if (o->peak)
        printf("f32 peak      %.1f GFLOP/s with 1 thread, %.1f GFLOP/s with %d\n", f->measured.peak_one * 1e-9,
               f->measured.peak_all * 1e-9, r->n_threads);
}

static int print_json(const info_options *o, const facts *f)
{
    const dp_runtime_info *const r = &f->runtime;
    const unsigned version = dp_version();
    char text[32];
    snprintf(text, sizeof(text), "%u.%u.%u", version / 10000, version / 100 % 100, version % 100);
    json_t *const available = json_array();
    for (int isa = DP_ISA_SCALAR; isa < DP_ISA_COUNT; isa++)
        if (r->isas_available & 1u << isa)
            json_array_append_new(available, json_string(dp_isa_name((dp_isa)isa)));
    json_t *const object = json_pack(
        "{s:s, s:s, s:s, s:o, s:b, s:i, s:i, s:i, s:i, s:I, s:I, s:I, s:s, s:I, s:s, s:s, s:i}", "version", text, "cpu",
        f->cpu, "isa", dp_isa_name(r->isa), "isas_available", available, "bf16_instructions", (int)r->bf16_instructions,
        "threads", (int)r->n_threads, "cores", (int)r->n_cores, "hardware_threads", (int)r->n_pus, "numa_nodes",
        (int)r->n_numa_nodes, "l1d_bytes", (json_int_t)r->l1d_bytes, "l2_bytes", (json_int_t)r->l2_bytes, "l3_bytes",
        (json_int_t)r->l3_bytes, "huge_pages", f->huge_pages, "huge_page_bytes", (json_int_t)r->huge_page_bytes,
        "onednn", f->onednn, "hwloc", f->hwloc, "openmp", f->openmp);
    if (o->bandwidth) {
        json_object_set_new(object, "read_bytes_per_s_1_thread", json_real(f->measured.read_one));
        json_object_set_new(object, "read_bytes_per_s", json_real(f->measured.read_all));
    }
    if (o->peak) {
        json_object_set_new(object, "f32_flops_per_s_1_thread", json_real(f->measured.peak_one));
        json_object_set_new(object, "f32_flops_per_s", json_real(f->measured.peak_all));
    }
    const int status = object ? json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) : -1;
    putchar('\n');
    json_decref(object);
    return status == 0 ? 0 : EXIT_RUNTIME;
}

int cmd_info(int argc, char **argv)
{
    static const struct argp argp = {
        .options = options_list,
        .parser = parse,
        .doc = "Show what the library found on this machine and what it was built with.",
    };
    info_options o = {0};
    if (argp_parse(&argp, argc, argv, 0, NULL, &o) != 0)
        return EXIT_USAGE;

    dp_runtime *runtime = NULL;
    facts f = {0};
    dp_runtime_info_init(&f.runtime);
    dp_status status = dp_runtime_create(NULL, &runtime);
    if (status == DP_OK)
        status = dp_runtime_get_info(runtime, &f.runtime);
    if (status != DP_OK) {
        char reason[256];
        fprintf(stderr, "doublep info: %s\n", dp_last_error(NULL, reason, sizeof(reason)));
        dp_runtime_free(runtime);
        return EXIT_RUNTIME;
    }
    read_cpu_name(f.cpu, sizeof(f.cpu));
    read_huge_page_setting(f.huge_pages, sizeof(f.huge_pages));
    collect_versions(&f);
    f.measured = measure(&o, &f.runtime);
    dp_runtime_free(runtime);
    if (f.measured.read_one < 0 || f.measured.read_all < 0) {
        fprintf(stderr, "doublep info: no memory for %zu MiB per thread\n", bandwidth_bytes >> 20);
        return EXIT_RUNTIME;
    }
    if (o.json)
        return print_json(&o, &f);
    print_text(&o, &f);
    return 0;
}
