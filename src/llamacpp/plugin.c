/* The backend as ggml sees it: registration, device, what is claimed, computing a graph. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "doublep/doublep.h"
#include "ggml-backend-impl.h"
#include "llamacpp/attention.h"
#include "llamacpp/cache.h"
#include "llamacpp/cpu.h"
#include "llamacpp/plugin.h"

plugin_state plugin;

/* llama.cpp's automatic choice gives flash attention up where a device other than the cache's computes it: while a context is made
 * in this thread, until one begins to compute, nothing is claimed. */
static _Thread_local bool constructing;

typedef struct plugin_backend {
    cpu_delegate cpu;
    attention_scratch scratch;
    int n_threads;
} plugin_backend;

/* ---- Backend ---- */

static const char *get_name(ggml_backend_t backend)
{
    (void)backend;
    return "DoubleP";
}

static void print_settings(void)
{
    dp_runtime_info info;
    dp_runtime_info_init(&info);
    if (dp_runtime_get_info(list_runtime(), &info)) return;
    fprintf(stderr,
            "doublep: version %s for ggml %s, %s; epsilon %g, contexts from %u tokens on, at most %.0f MiB for copies%s\n",
            DP_VERSION_STRING, DP_GGML_VERSION, dp_isa_name(info.isa), (double)plugin.settings.epsilon,
            plugin.settings.min_context, (double)info.memory_limit / (1 << 20),
            plugin.settings.int8 ? " in int8" : "");
}

static void print_stats(void)
{
    const plugin_counters *const c = &plugin.counters;
    if (!(c->sparse + c->dense + c->passed)) return;
    fprintf(
        stderr,
        "doublep: attention nodes: %llu sparse, %llu dense, %llu passed on (%llu prompts, %llu for want of memory); "
        "read %.1f of %.1f MB (%.1f %%) in %.2f s; "
        "%llu rows copied and indexed, %.2f s of prompts and %.2f s of decoding; %llu prompt queries seen, "
        "%llu lists rebuilt\n",
        (unsigned long long)c->sparse, (unsigned long long)c->dense, (unsigned long long)c->passed,
        (unsigned long long)c->prompts, (unsigned long long)c->refused, (double)c->bytes / 1e6,
        (double)c->bytes_dense / 1e6,
        c->bytes_dense ? 100.0 * (double)c->bytes / (double)c->bytes_dense : 0.0, (double)c->decode_ns / 1e9,
        (unsigned long long)c->tokens_copied, (double)c->prompt_ns / 1e9, (double)c->growth_ns / 1e9,
        (unsigned long long)c->queries, (unsigned long long)c->rebuilds);
}

static void free_backend(ggml_backend_t backend)
{
    plugin_backend *const b = backend->context;
    if (plugin.settings.stats) print_stats();
    cpu_delegate_free(&b->cpu);
    attention_scratch_free(&b->scratch);
    free(b);
    free(backend);
}

static enum ggml_status graph_compute(ggml_backend_t backend, struct ggml_cgraph *graph)
{
    plugin_backend *const b = backend->context;
    const int n = ggml_graph_n_nodes(graph);
    const int32_t limit = dp_limit_threads(b->n_threads);
    enum ggml_status status = GGML_STATUS_SUCCESS;
    for (int i = 0; i < n && status == GGML_STATUS_SUCCESS; i++) {
        struct ggml_tensor *const node = ggml_graph_node(graph, i);
        if (node->op == GGML_OP_FLASH_ATTN_EXT) {
            status = cpu_delegate_run(&b->cpu, b->n_threads); /* the rows that it reads */
            if (status != GGML_STATUS_SUCCESS || attention_compute(node, &b->scratch)) continue;
            atomic_fetch_add(&plugin.counters.passed, 1);
        } else if (node->op == GGML_OP_SET_ROWS) {
            cache_written(node);
        } else {
            continue; /* a view */
        }
        status = cpu_delegate_add(&b->cpu, node, b->n_threads);
    }
    dp_limit_threads(limit);
    return status == GGML_STATUS_SUCCESS ? cpu_delegate_run(&b->cpu, b->n_threads) : status;
}

static void set_n_threads(ggml_backend_t backend, int n_threads)
{
    plugin_backend *const b = backend->context;
    b->n_threads = n_threads;
    constructing = false;
}

static void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void *data)
{
    plugin_backend *const b = backend->context;
    const ggml_backend_reg_t reg = cpu_device()->reg;
    ggml_backend_set_abort_callback_t set;
    *(void **)&set = reg->iface.get_proc_address(reg, "ggml_backend_set_abort_callback");
    if (set) set(b->cpu.backend, callback, data);
}

/* ---- Device ---- */

static const char *device_name(ggml_backend_dev_t device)
{
    (void)device;
    return "DoubleP";
}

static const char *device_description(ggml_backend_dev_t device)
{
    (void)device;
    return "Double-P attention";
}

static void device_memory(ggml_backend_dev_t device, size_t *available, size_t *total)
{
    (void)device;
    *available = *total = 0;
}

static enum ggml_backend_dev_type device_type(ggml_backend_dev_t device)
{
    (void)device;
    return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

static void device_props(ggml_backend_dev_t device, struct ggml_backend_dev_props *props)
{
    *props = (struct ggml_backend_dev_props){
        .name = device_name(device), .description = device_description(device), .type = GGML_BACKEND_DEVICE_TYPE_ACCEL};
    props->caps.mmap_support = true;
}

static ggml_backend_t init_backend(ggml_backend_dev_t device, const char *params)
{
    static const ggml_guid guid = {0xd0, 0x0b, 0x1e, 0x9a, 0x5c, 0x41, 0x4e, 0x1b,
                                   0x8e, 0x70, 0x0c, 0x6f, 0x2b, 0x97, 0x13, 0xd5};
    (void)params;
    ggml_backend_t backend = calloc(1, sizeof *backend);
    plugin_backend *const b = calloc(1, sizeof *b);
    if (!backend || !b || !cpu_delegate_init(&b->cpu)) {
        free(backend);
        free(b);
        return NULL;
    }
    b->n_threads = 1;
    *backend =
        (struct ggml_backend){.guid = (ggml_guid_t)&guid,
                              .iface = {.get_name = get_name, .free = free_backend, .graph_compute = graph_compute},
                              .device = device,
                              .context = b};
    constructing = true;
    return backend;
}

static ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t device)
{
    (void)device;
    return ggml_backend_cpu_buffer_type();
}

/* Rows of a tensor that lasts, long enough for a context that is worth it. */
static bool writes_cache(const struct ggml_tensor *node)
{
    const struct ggml_tensor *const root = cache_root(node);
    return root != node && root->op == GGML_OP_NONE && root->buffer && ggml_backend_buffer_is_host(root->buffer) &&
           ggml_nrows(root) >= plugin.settings.min_context;
}

static bool supports_op(ggml_backend_dev_t device, const struct ggml_tensor *node)
{
    (void)device;
    const ggml_backend_dev_t cpu = cpu_device();
    if (!cpu || plugin.settings.off) return false;
    switch (node->op) {
    case GGML_OP_NONE:
    case GGML_OP_RESHAPE:
    case GGML_OP_VIEW:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE: return true;
    case GGML_OP_SET_ROWS: return writes_cache(node) && cpu->iface.supports_op(cpu, node);
    case GGML_OP_FLASH_ATTN_EXT: return !constructing && attention_supports(node);
    default:
        /* Something else is about to write to a cache: keys are being shifted. */
        if (node->view_src && node->data) cache_changed(node);
        return false;
    }
}

static bool supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t type)
{
    (void)device;
    return ggml_backend_buft_is_host(type);
}

/* ---- Registration ---- */

static const char *reg_name(ggml_backend_reg_t reg)
{
    (void)reg;
    return "DoubleP";
}

static size_t device_count(ggml_backend_reg_t reg)
{
    (void)reg;
    return 1;
}

static ggml_backend_dev_t get_device(ggml_backend_reg_t reg, size_t index)
{
    static struct ggml_backend_device device = {.iface = {.get_name = device_name,
                                                          .get_description = device_description,
                                                          .get_memory = device_memory,
                                                          .get_type = device_type,
                                                          .get_props = device_props,
                                                          .init_backend = init_backend,
                                                          .get_buffer_type = buffer_type,
                                                          .supports_op = supports_op,
                                                          .supports_buft = supports_buft}};
    device.reg = reg;
    return index == 0 ? &device : NULL;
}

static const plugin_counters *counters(void)
{
    return &plugin.counters;
}

static void *get_proc_address(ggml_backend_reg_t reg, const char *name)
{
    (void)reg;
    void *function = NULL;
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) *(void (**)(ggml_backend_t, int)) & function = set_n_threads;
    if (strcmp(name, "ggml_backend_set_abort_callback") == 0)
        *(void (**)(ggml_backend_t, ggml_abort_callback, void *)) & function = set_abort_callback;
    if (strcmp(name, "doublep_counters") == 0) *(const plugin_counters *(**)(void)) & function = counters;
    return function;
}

/* The plugin's entry in ggml's registry; NULL, after one line that says why, where it cannot serve. */
static ggml_backend_reg_t registration(void)
{
    static struct ggml_backend_reg reg = {.api_version = GGML_BACKEND_API_VERSION,
                                          .iface = {.get_name = reg_name,
                                                    .get_device_count = device_count,
                                                    .get_device = get_device,
                                                    .get_proc_address = get_proc_address}};
    char why[128];
    if (strcmp(ggml_version(), DP_GGML_VERSION) != 0) {
        fprintf(stderr, "doublep: not loaded: built for ggml %s, this is ggml %s\n", DP_GGML_VERSION, ggml_version());
        return NULL;
    }
    if (!ggml_function("ggml_backend_dev_by_type")) {
        fprintf(stderr, "doublep: not loaded: this program's ggml is linked into it, where the plugin cannot reach it\n");
        return NULL;
    }
    if (!plugin_settings_read(&plugin.settings, why, sizeof why)) {
        fprintf(stderr, "doublep: not loaded: %s\n", why);
        return NULL;
    }
    if (plugin.settings.off) return NULL;
    if (!list_create_runtime()) {
        fprintf(stderr, "doublep: not loaded: %s\n", dp_last_error(NULL, why, sizeof why));
        return NULL;
    }
    if (plugin.settings.stats) print_settings();
    return &reg;
}

/* What ggml calls after it has loaded the plugin (GGML_BACKEND_PATH, ggml_backend_load). */
DP_API ggml_backend_reg_t ggml_backend_init(void);
DP_API ggml_backend_reg_t ggml_backend_init(void)
{
    return registration();
}

/* Preloaded into a program whose backends are built in, the plugin adds itself: such programs never look for others.
 * Where backends are loaded, none is registered yet, and GGML_BACKEND_PATH does it. */
__attribute__((constructor)) static void preloaded(void)
{
    const char *const preload = getenv("LD_PRELOAD");
    Dl_info self;
    if (!preload || !dladdr(&plugin, &self) || !strstr(preload, strrchr(self.dli_fname, '/') + 1)) return;
    size_t (*count)(void);
    void (*add)(ggml_backend_reg_t);
    *(void **)&count = ggml_function("ggml_backend_reg_count");
    *(void **)&add = ggml_function("ggml_backend_register");
    if (!count || !add || !count()) return;
    const ggml_backend_reg_t reg = registration();
    if (reg) add(reg);
    unsetenv("GGML_BACKEND_PATH"); /* not twice */
}
