/* llama.cpp's CPU backend, which computes what the plugin does not: nodes that were claimed to see what they write, and
 * attention where the mask shows something that a dp_sequence cannot stand for. The same code on the same number of
 * threads: the same bits as without the plugin. */
#ifndef DP_LLAMACPP_CPU_H
#define DP_LLAMACPP_CPU_H

#include "ggml-backend-impl.h"

typedef struct cpu_delegate {
    ggml_backend_t backend;
    ggml_backend_set_n_threads_t set_n_threads;
    struct ggml_context *context; /* of the graph */
    struct ggml_cgraph *graph;    /* the nodes that wait */
    bool few_rows;                /* they are no work for more than one thread */
} cpu_delegate;

/* The device of the process's CPU backend, or NULL. */
ggml_backend_dev_t cpu_device(void);

/* A function of libggml, which knows the backends and which the plugin does not link with, or NULL. */
void *ggml_function(const char *name);

bool cpu_delegate_init(cpu_delegate *cpu);
void cpu_delegate_free(cpu_delegate *cpu);

/* Adds a node to those that wait; cpu_delegate_run computes them in order. */
enum ggml_status cpu_delegate_add(cpu_delegate *cpu, struct ggml_tensor *node, int n_threads);
enum ggml_status cpu_delegate_run(cpu_delegate *cpu, int n_threads);

#endif
