/* linear.c: see linear.h. */
#include "linear.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <oneapi/dnnl/dnnl.h>

/* The layout is asked for with so many rows; oneDNN's answer for one row is the same, and one copy must do for both. */
enum { LAYOUT_ROWS = 512 };

/* Shapes of one model times the batch sizes in use: a chunk, its remainders, one token. The least recently used goes. */
enum { MAX_PRODUCTS = 48 };

enum { HUGE_PAGE = 2 << 20 };

struct linear_weights {
    size_t n_in, n_out, bytes;
    void *data;
    dnnl_memory_t memory;
    dnnl_memory_desc_t layout;
};

/* A primitive with the memory objects of its operands; weights and rows are bound at each execution. */
typedef struct product {
    size_t n_in, n_out, rows;
    uint64_t last_use;
    dnnl_primitive_t primitive;
    dnnl_memory_t x, y;
} product;

struct linear_executor {
    dnnl_stream_t stream;
    uint64_t uses, flops;
    size_t n_products;
    product products[MAX_PRODUCTS];
};

static bool check(dnnl_status_t status, const char *what, char *error, size_t error_size)
{
    if (status == dnnl_success)
        return true;
    if (status == dnnl_out_of_memory)
        snprintf(error, error_size, "out of memory (oneDNN, %s)", what);
    else
        snprintf(error, error_size, "oneDNN: %s failed with status %d", what, (int)status);
    return false;
}

/* The process's one CPU engine: weights and executors meet freely. It lives as long as the process. */
static dnnl_engine_t the_engine;
static dnnl_status_t the_engine_status;

static void create_engine(void)
{
    the_engine_status = dnnl_engine_create(&the_engine, dnnl_cpu, 0);
}

static bool have_engine(char *error, size_t error_size)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, create_engine);
    return check(the_engine_status, "creating the engine", error, error_size);
}

static dnnl_memory_desc_t matrix(size_t rows, size_t cols, size_t row_stride, size_t col_stride)
{
    const dnnl_dims_t dims = {(dnnl_dim_t)rows, (dnnl_dim_t)cols};
    const dnnl_dims_t strides = {(dnnl_dim_t)row_stride, (dnnl_dim_t)col_stride};
    dnnl_memory_desc_t desc;
    memset(&desc, 0, sizeof(desc));
    dnnl_memory_desc_init_by_strides(&desc, 2, dims, dnnl_f32, strides);
    return desc;
}

/* A matmul of rows x n_in by weights; with layout = NULL oneDNN chooses one. */
static dnnl_status_t describe(size_t rows, size_t n_in, size_t n_out,
                              const dnnl_memory_desc_t *layout, dnnl_primitive_desc_t *desc)
{
    const dnnl_memory_desc_t x = matrix(rows, n_in, n_in, 1), y = matrix(rows, n_out, n_out, 1);
    dnnl_memory_desc_t w;
    if (layout) {
        w = *layout;
    } else {
        const dnnl_dims_t dims = {(dnnl_dim_t)n_in, (dnnl_dim_t)n_out};
        const dnnl_status_t status = dnnl_memory_desc_init_by_tag(&w, 2, dims, dnnl_f32, dnnl_format_tag_any);
        if (status != dnnl_success)
            return status;
    }
    dnnl_matmul_desc_t operation;
    const dnnl_status_t status = dnnl_matmul_desc_init(&operation, &x, &w, NULL, &y);
    return status == dnnl_success ? dnnl_primitive_desc_create(desc, &operation, NULL, the_engine, NULL) : status;
}

static bool choose_layout(linear_weights *weights, char *error, size_t error_size)
{
    dnnl_primitive_desc_t desc = NULL;
    if (!check(describe(LAYOUT_ROWS, weights->n_in, weights->n_out, NULL, &desc), "choosing a layout",
               error, error_size))
        return false;
    weights->layout = *dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0);
    weights->bytes = dnnl_memory_desc_get_size(&weights->layout);
    dnnl_primitive_desc_destroy(desc);
    return true;
}

/* oneDNN's copy of w, in the chosen layout. */
static bool reorder(linear_weights *weights, const float *w, char *error, size_t error_size)
{
    const dnnl_memory_desc_t plain = matrix(weights->n_in, weights->n_out, 1, weights->n_in);
    dnnl_memory_t from = NULL;
    dnnl_primitive_desc_t desc = NULL;
    dnnl_primitive_t primitive = NULL;
    dnnl_stream_t stream = NULL;
    dnnl_status_t status = dnnl_memory_create(&from, &plain, the_engine, (void *)(uintptr_t)w);
    if (status == dnnl_success)
        status = dnnl_memory_create(&weights->memory, &weights->layout, the_engine, weights->data);
    if (status == dnnl_success)
        status = dnnl_reorder_primitive_desc_create(&desc, &plain, the_engine, &weights->layout, the_engine,
                                                    NULL);
    if (status == dnnl_success)
        status = dnnl_primitive_create(&primitive, desc);
    if (status == dnnl_success)
        status = dnnl_stream_create(&stream, the_engine, dnnl_stream_default_flags);
    if (status == dnnl_success) {
        const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, weights->memory}};
        status = dnnl_primitive_execute(primitive, stream, 2, args);
    }
    if (status == dnnl_success)
        status = dnnl_stream_wait(stream);
    if (stream)
        dnnl_stream_destroy(stream);
    if (primitive)
        dnnl_primitive_destroy(primitive);
    if (desc)
        dnnl_primitive_desc_destroy(desc);
    if (from)
        dnnl_memory_destroy(from);
    return check(status, "reordering weights", error, error_size);
}

linear_weights *linear_weights_create(size_t n_in, size_t n_out, const float *w, char *error, size_t error_size)
{
    linear_weights *const weights = calloc(1, sizeof(*weights));
    if (!weights) {
        snprintf(error, error_size, "out of memory");
        return NULL;
    }
    weights->n_in = n_in;
    weights->n_out = n_out;
    if (!have_engine(error, error_size) || !choose_layout(weights, error, error_size))
        goto fail;
    const size_t size = (weights->bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    weights->data = aligned_alloc(HUGE_PAGE, size);
    if (!weights->data) {
        snprintf(error, error_size, "out of memory (%zu bytes of weights)", weights->bytes);
        goto fail;
    }
    madvise(weights->data, size, MADV_HUGEPAGE); /* fewer TLB misses where the kernel has them; no matter if not */
    if (!reorder(weights, w, error, error_size))
        goto fail;
    return weights;
fail:
    linear_weights_free(weights);
    return NULL;
}

void linear_weights_free(linear_weights *weights)
{
    if (!weights)
        return;
    if (weights->memory)
        dnnl_memory_destroy(weights->memory);
    free(weights->data);
    free(weights);
}

size_t linear_weights_bytes(const linear_weights *weights)
{
    return weights->bytes;
}

linear_executor *linear_executor_create(char *error, size_t error_size)
{
    linear_executor *const executor = calloc(1, sizeof(*executor));
    if (!executor) {
        snprintf(error, error_size, "out of memory");
        return NULL;
    }
    if (!have_engine(error, error_size) ||
        !check(dnnl_stream_create(&executor->stream, the_engine, dnnl_stream_default_flags), "stream", error,
               error_size)) {
        linear_executor_free(executor);
        return NULL;
    }
    return executor;
}

static void product_free(product *p)
{
    if (p->primitive)
        dnnl_primitive_destroy(p->primitive);
    if (p->x)
        dnnl_memory_destroy(p->x);
    if (p->y)
        dnnl_memory_destroy(p->y);
    memset(p, 0, sizeof(*p));
}

void linear_executor_free(linear_executor *executor)
{
    if (!executor)
        return;
    for (size_t i = 0; i < executor->n_products; i++)
        product_free(&executor->products[i]);
    if (executor->stream)
        dnnl_stream_destroy(executor->stream);
    free(executor);
}

static bool product_create(product *p, const linear_weights *weights, size_t rows, char *error,
                           size_t error_size)
{
    dnnl_primitive_desc_t desc = NULL;
    dnnl_status_t status = describe(rows, weights->n_in, weights->n_out, &weights->layout, &desc);
    if (status == dnnl_success)
        status = dnnl_primitive_create(&p->primitive, desc);
    if (desc)
        dnnl_primitive_desc_destroy(desc);
    const dnnl_memory_desc_t x = matrix(rows, weights->n_in, weights->n_in, 1);
    const dnnl_memory_desc_t y = matrix(rows, weights->n_out, weights->n_out, 1);
    if (status == dnnl_success)
        status = dnnl_memory_create(&p->x, &x, the_engine, DNNL_MEMORY_NONE);
    if (status == dnnl_success)
        status = dnnl_memory_create(&p->y, &y, the_engine, DNNL_MEMORY_NONE);
    p->n_in = weights->n_in;
    p->n_out = weights->n_out;
    p->rows = rows;
    return check(status, "matmul", error, error_size);
}

/* The primitive for a shape, made where it is missing; NULL and a message on failure. */
static product *find_product(linear_executor *executor, const linear_weights *weights, size_t rows, char *error,
                             size_t error_size)
{
    product *oldest = &executor->products[0];
    for (size_t i = 0; i < executor->n_products; i++) {
        product *const p = &executor->products[i];
        if (p->rows == rows && p->n_in == weights->n_in && p->n_out == weights->n_out)
            return p;
        if (p->last_use < oldest->last_use)
            oldest = p;
    }
    product made = {0};
    if (!product_create(&made, weights, rows, error, error_size)) {
        product_free(&made);
        return NULL;
    }
    product *const slot =
        executor->n_products < MAX_PRODUCTS ? &executor->products[executor->n_products++] : oldest;
    product_free(slot);
    *slot = made;
    return slot;
}

bool linear_execute(linear_executor *executor, const linear_weights *weights, size_t rows, const float *x, float *y,
                    char *error, size_t error_size)
{
    if (rows == 0)
        return true;
    product *const p = find_product(executor, weights, rows, error, error_size);
    if (!p)
        return false;
    p->last_use = ++executor->uses;
    dnnl_status_t status = dnnl_memory_set_data_handle(p->x, (void *)(uintptr_t)x);
    if (status == dnnl_success)
        status = dnnl_memory_set_data_handle(p->y, y);
    if (status == dnnl_success) {
        const dnnl_exec_arg_t args[] = {
            {DNNL_ARG_SRC, p->x}, {DNNL_ARG_WEIGHTS, weights->memory}, {DNNL_ARG_DST, p->y}};
        status = dnnl_primitive_execute(p->primitive, executor->stream, 3, args);
    }
    if (status == dnnl_success)
        status = dnnl_stream_wait(executor->stream);
    executor->flops += 2 * (uint64_t)rows * weights->n_in * weights->n_out;
    return check(status, "matmul", error, error_size);
}

uint64_t linear_executor_flops(const linear_executor *executor)
{
    return executor->flops;
}
