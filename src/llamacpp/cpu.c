/* Finding the CPU backend and handing nodes to it. */
#include "llamacpp/cpu.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>

enum { NODES = 64, SMALL_ROWS = 32 };

/* The first loaded library whose file name starts with libggml.so, where it has the function. */
static int find_library(struct dl_phdr_info *info, size_t size, void *result)
{
    (void)size;
    const char *const slash = strrchr(info->dlpi_name, '/'), *const name = slash ? slash + 1 : info->dlpi_name;
    if (strncmp(name, "libggml.so", 10) != 0) return 0;
    *(const char **)result = info->dlpi_name;
    return 1;
}

void *ggml_function(const char *name)
{
    void *function = dlsym(RTLD_DEFAULT, name);
    if (function) return function;
    /* A program such as Python loads its libraries for itself alone. */
    const char *path = NULL;
    dl_iterate_phdr(find_library, &path);
    void *const library = path ? dlopen(path, RTLD_LAZY | RTLD_NOLOAD) : NULL;
    if (!library) return NULL;
    function = dlsym(library, name);
    dlclose(library); /* it was loaded before and stays */
    return function;
}

ggml_backend_dev_t cpu_device(void)
{
    static ggml_backend_dev_t device;
    if (!device) {
        ggml_backend_dev_t (*by_type)(enum ggml_backend_dev_type);
        *(void **)&by_type = ggml_function("ggml_backend_dev_by_type");
        device = by_type ? by_type(GGML_BACKEND_DEVICE_TYPE_CPU) : NULL;
    }
    return device;
}

bool cpu_delegate_init(cpu_delegate *cpu)
{
    *cpu = (cpu_delegate){0};
    const ggml_backend_dev_t device = cpu_device();
    if (!device) return false;
    *(void **)&cpu->set_n_threads = device->reg->iface.get_proc_address(device->reg, "ggml_backend_set_n_threads");
    cpu->context = ggml_init((struct ggml_init_params){
        .mem_size = ggml_graph_overhead_custom(NODES, false) + ggml_tensor_overhead(), .no_alloc = true});
    cpu->backend = device->iface.init_backend(device, NULL);
    if (cpu->context) cpu->graph = ggml_new_graph_custom(cpu->context, NODES, false);
    if (cpu->graph && cpu->backend && cpu->set_n_threads) return true;
    cpu_delegate_free(cpu);
    return false;
}

void cpu_delegate_free(cpu_delegate *cpu)
{
    if (cpu->backend) cpu->backend->iface.free(cpu->backend);
    if (cpu->context) ggml_free(cpu->context);
    *cpu = (cpu_delegate){0};
}

enum ggml_status cpu_delegate_run(cpu_delegate *cpu, int n_threads)
{
    if (!ggml_graph_n_nodes(cpu->graph)) return GGML_STATUS_SUCCESS;
    cpu->set_n_threads(cpu->backend, cpu->few_rows ? 1 : n_threads);
    const enum ggml_status status = cpu->backend->iface.graph_compute(cpu->backend, cpu->graph);
    ggml_graph_clear(cpu->graph);
    return status;
}

enum ggml_status cpu_delegate_add(cpu_delegate *cpu, struct ggml_tensor *node, int n_threads)
{
    if (ggml_graph_n_nodes(cpu->graph) == NODES) {
        const enum ggml_status status = cpu_delegate_run(cpu, n_threads);
        if (status != GGML_STATUS_SUCCESS) return status;
    }
    const bool small = node->op == GGML_OP_SET_ROWS && node->src[0]->ne[1] <= SMALL_ROWS;
    cpu->few_rows = small && (cpu->few_rows || !ggml_graph_n_nodes(cpu->graph));
    ggml_graph_add_node(cpu->graph, node);
    return GGML_STATUS_SUCCESS;
}
