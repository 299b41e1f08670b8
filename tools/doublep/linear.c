/* linear.c: see linear.h. */
#include "linear.h"

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <oneapi/dnnl/dnnl.h>

#include "simd/quantise.h"

/* Shapes of one model times the batch sizes in use: a chunk, its remainders, one token. The least recently used goes. */
enum { MAX_PRODUCTS = 48 };

enum { HUGE_PAGE = 2 << 20 };

typedef enum weight_form { IN_F32, IN_BYTES, FORMS } weight_form;

/* The layouts are asked for with so many rows: in f32 oneDNN's answer for one is the same, in bytes one token's are two. */
static const size_t layout_rows[FORMS] = {512, 2};

/* Sums of more products of bytes than this could leave the range of int32. */
enum { MOST_IN = 1 << 17 };

/* A matrix in the layout of a form. */
typedef struct operand {
    size_t bytes;
    void *data;
    dnnl_memory_t memory; /* NULL: none */
    dnnl_memory_desc_t layout;
} operand;

struct linear_weights {
    size_t n_in, n_out;
    operand w[FORMS];
    float *step; /* [n_out] of the bytes */
};

/* A primitive with the memory objects of its operands; weights and rows are bound at each execution. In bytes a row is two:
 * the upper and the lower byte of its elements. */
typedef struct product {
    weight_form form;
    size_t n_in, n_out, rows;
    uint64_t last_use;
    dnnl_primitive_t primitive;
    dnnl_memory_t x, y;
    int8_t *bytes;  /* [rows][2][n_in] */
    int32_t *words; /* [rows][2][n_out] */
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

/* Exactly and fast, as it is set up: without VNNI it saturates, or takes its reference code. */
static bool onednn_multiplies_bytes(void)
{
    const int isa = (int)dnnl_get_effective_cpu_isa();
    return (isa & dnnl_cpu_isa_avx512_core_vnni) == dnnl_cpu_isa_avx512_core_vnni;
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

static const dnnl_data_type_t operand_type[FORMS] = {dnnl_f32, dnnl_s8}, result_type[FORMS] = {dnnl_f32, dnnl_s32};

static dnnl_memory_desc_t matrix(dnnl_data_type_t type, size_t rows, size_t cols, size_t row_stride, size_t col_stride)
{
    const dnnl_dims_t dims = {(dnnl_dim_t)rows, (dnnl_dim_t)cols};
    const dnnl_dims_t strides = {(dnnl_dim_t)row_stride, (dnnl_dim_t)col_stride};
    dnnl_memory_desc_t desc;
    memset(&desc, 0, sizeof(desc));
    dnnl_memory_desc_init_by_strides(&desc, 2, dims, type, strides);
    return desc;
}

/* A matmul of rows x n_in by weights of a form; with layout = NULL oneDNN chooses one. */
static dnnl_status_t describe(weight_form form, size_t rows, size_t n_in, size_t n_out, const dnnl_memory_desc_t *layout,
                              dnnl_primitive_desc_t *desc)
{
    const dnnl_memory_desc_t x = matrix(operand_type[form], rows, n_in, n_in, 1);
    const dnnl_memory_desc_t y = matrix(result_type[form], rows, n_out, n_out, 1);
    dnnl_memory_desc_t w;
    if (layout) {
        w = *layout;
    } else {
        const dnnl_dims_t dims = {(dnnl_dim_t)n_in, (dnnl_dim_t)n_out};
        const dnnl_status_t status = dnnl_memory_desc_init_by_tag(&w, 2, dims, operand_type[form], dnnl_format_tag_any);
        if (status != dnnl_success)
            return status;
    }
    dnnl_matmul_desc_t operation;
    const dnnl_status_t status = dnnl_matmul_desc_init(&operation, &x, &w, NULL, &y);
    return status == dnnl_success ? dnnl_primitive_desc_create(desc, &operation, NULL, the_engine, NULL) : status;
}

static bool choose_layout(linear_weights *weights, weight_form form, char *error, size_t error_size)
{
    operand *const w = &weights->w[form];
    dnnl_primitive_desc_t desc = NULL;
    if (!check(describe(form, layout_rows[form], weights->n_in, weights->n_out, NULL, &desc), "choosing a layout", error,
               error_size))
        return false;
    w->layout = *dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0);
    w->bytes = dnnl_memory_desc_get_size(&w->layout);
    dnnl_primitive_desc_destroy(desc);
    return true;
}

/* oneDNN's copy of a [n_out][n_in] matrix, in the chosen layout. */
static bool reorder(linear_weights *weights, weight_form form, const void *w, char *error, size_t error_size)
{
    operand *const to = &weights->w[form];
    const dnnl_memory_desc_t plain = matrix(operand_type[form], weights->n_in, weights->n_out, 1, weights->n_in);
    dnnl_memory_t from = NULL;
    dnnl_primitive_desc_t desc = NULL;
    dnnl_primitive_t primitive = NULL;
    dnnl_stream_t stream = NULL;
    dnnl_status_t status = dnnl_memory_create(&from, &plain, the_engine, (void *)(uintptr_t)w);
    if (status == dnnl_success)
        status = dnnl_memory_create(&to->memory, &to->layout, the_engine, to->data);
    if (status == dnnl_success)
        status = dnnl_reorder_primitive_desc_create(&desc, &plain, the_engine, &to->layout, the_engine, NULL);
    if (status == dnnl_success)
        status = dnnl_primitive_create(&primitive, desc);
    if (status == dnnl_success)
        status = dnnl_stream_create(&stream, the_engine, dnnl_stream_default_flags);
    if (status == dnnl_success) {
        const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to->memory}};
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

/* The weights in a form, from a plain matrix of its type. */
static bool store(linear_weights *weights, weight_form form, const void *w, char *error, size_t error_size)
{
    operand *const to = &weights->w[form];
    if (!choose_layout(weights, form, error, error_size))
        return false;
    const size_t size = (to->bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    to->data = aligned_alloc(HUGE_PAGE, size);
    if (!to->data) {
        snprintf(error, error_size, "out of memory (%zu bytes of weights)", to->bytes);
        return false;
    }
    madvise(to->data, size, MADV_HUGEPAGE); /* fewer TLB misses where the kernel has them; no matter if not */
    return reorder(weights, form, w, error, error_size);
}

/* The weights in bytes, each output's in units of a step of its own; left out where some are not finite. */
static bool store_bytes(linear_weights *weights, const float *w, char *error, size_t error_size)
{
    int8_t *const bytes = malloc(weights->n_in * weights->n_out);
    bool finite = true, done = false;
    weights->step = malloc(weights->n_out * sizeof(*weights->step));
    if (!bytes || !weights->step) {
        snprintf(error, error_size, "out of memory");
    } else {
        dp_quantise_rows(w, weights->n_out, weights->n_in, bytes, weights->step);
        for (size_t i = 0; i < weights->n_out; i++)
            finite = finite && isfinite(weights->step[i]);
        done = !finite || store(weights, IN_BYTES, bytes, error, error_size);
    }
    free(bytes);
    return done;
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
    if (have_engine(error, error_size) && store(weights, IN_F32, w, error, error_size) &&
        (!onednn_multiplies_bytes() || n_in > MOST_IN || store_bytes(weights, w, error, error_size)))
        return weights;
    linear_weights_free(weights);
    return NULL;
}

void linear_weights_free(linear_weights *weights)
{
    if (!weights)
        return;
    for (int form = 0; form < FORMS; form++) {
        if (weights->w[form].memory)
            dnnl_memory_destroy(weights->w[form].memory);
        free(weights->w[form].data);
    }
    free(weights->step);
    free(weights);
}

size_t linear_weights_bytes(const linear_weights *weights)
{
    return weights->w[IN_F32].bytes + weights->w[IN_BYTES].bytes;
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
    free(p->bytes);
    free(p->words);
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

static bool product_create(product *p, const linear_weights *weights, weight_form form, size_t rows, char *error,
                           size_t error_size)
{
    const size_t parts = form == IN_BYTES ? 2 : 1, n_in = weights->n_in, n_out = weights->n_out;
    *p = (product){.form = form, .n_in = n_in, .n_out = n_out, .rows = rows};
    if (form == IN_BYTES) {
        p->bytes = malloc(parts * rows * n_in);
        p->words = malloc(parts * rows * n_out * sizeof(*p->words));
        if (!p->bytes || !p->words)
            return check(dnnl_out_of_memory, "rows in bytes", error, error_size);
    }
    dnnl_primitive_desc_t desc = NULL;
    dnnl_status_t status = describe(form, parts * rows, n_in, n_out, &weights->w[form].layout, &desc);
    if (status == dnnl_success)
        status = dnnl_primitive_create(&p->primitive, desc);
    if (desc)
        dnnl_primitive_desc_destroy(desc);
    const dnnl_memory_desc_t x = matrix(operand_type[form], parts * rows, n_in, n_in, 1);
    const dnnl_memory_desc_t y = matrix(result_type[form], parts * rows, n_out, n_out, 1);
    if (status == dnnl_success)
        status = dnnl_memory_create(&p->x, &x, the_engine, DNNL_MEMORY_NONE);
    if (status == dnnl_success)
        status = dnnl_memory_create(&p->y, &y, the_engine, DNNL_MEMORY_NONE);
    return check(status, "matmul", error, error_size);
}

/* The primitive for a shape, made where it is missing; NULL and a message on failure. */
static product *find_product(linear_executor *executor, const linear_weights *weights, weight_form form, size_t rows,
                             char *error, size_t error_size)
{
    product *oldest = &executor->products[0];
    for (size_t i = 0; i < executor->n_products; i++) {
        product *const p = &executor->products[i];
        if (p->form == form && p->rows == rows && p->n_in == weights->n_in && p->n_out == weights->n_out)
            return p;
        if (p->last_use < oldest->last_use)
            oldest = p;
    }
    product made;
    if (!product_create(&made, weights, form, rows, error, error_size)) {
        product_free(&made);
        return NULL;
    }
    product *const slot =
        executor->n_products < MAX_PRODUCTS ? &executor->products[executor->n_products++] : oldest;
    product_free(slot);
    *slot = made;
    return slot;
}

static bool multiply(const linear_executor *executor, const linear_weights *weights, const product *p, const void *x,
                     void *y, char *error, size_t error_size)
{
    dnnl_status_t status = dnnl_memory_set_data_handle(p->x, (void *)(uintptr_t)x);
    if (status == dnnl_success)
        status = dnnl_memory_set_data_handle(p->y, y);
    if (status == dnnl_success) {
        const dnnl_exec_arg_t args[] = {
            {DNNL_ARG_SRC, p->x}, {DNNL_ARG_WEIGHTS, weights->w[p->form].memory}, {DNNL_ARG_DST, p->y}};
        status = dnnl_primitive_execute(p->primitive, executor->stream, 3, args);
    }
    if (status == dnnl_success)
        status = dnnl_stream_wait(executor->stream);
    return check(status, "matmul", error, error_size);
}

/* x[i] = unit (256 upper[i] + lower[i]), to the nearest; returns the unit. */
static float split_row(const float *x, size_t n, int8_t *upper, int8_t *lower)
{
    static const float whole = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest whole number */
    const float unit = dp_largest_magnitude(x, n) / (127 * 256), inverse = unit >= FLT_MIN ? 1 / unit : 0;
    for (size_t i = 0; i < n; i++) {
        const int32_t rounded = (int32_t)((x[i] * inverse + whole) - whole), high = (rounded + 128) >> 8;
        upper[i] = (int8_t)high;
        lower[i] = (int8_t)(rounded - 256 * high);
    }
    return unit;
}

static bool multiply_bytes(const linear_executor *executor, const linear_weights *weights, const product *p,
                           const float *x, float *y, char *error, size_t error_size)
{
    const size_t n_in = p->n_in, n_out = p->n_out;
    for (size_t r = 0; r < p->rows; r++) {
        int8_t *const bytes = p->bytes + 2 * r * n_in;
        y[r * n_out] = split_row(x + r * n_in, n_in, bytes, bytes + n_in); /* kept there meanwhile */
    }
    if (!multiply(executor, weights, p, p->bytes, p->words, error, error_size))
        return false;
    for (size_t r = 0; r < p->rows; r++) {
        const int32_t *const upper = p->words + 2 * r * n_out, *const lower = upper + n_out;
        const float unit = y[r * n_out];
        for (size_t i = 0; i < n_out; i++)
            y[r * n_out + i] = unit * weights->step[i] * (256.0f * (float)upper[i] + (float)lower[i]);
    }
    return true;
}

bool linear_execute(linear_executor *executor, const linear_weights *weights, bool in_bytes, size_t rows, const float *x,
                    float *y, char *error, size_t error_size)
{
    if (rows == 0)
        return true;
    const weight_form form = in_bytes && weights->w[IN_BYTES].memory &&
                                     isfinite(dp_largest_magnitude(x, rows * weights->n_in))
                                 ? IN_BYTES
                                 : IN_F32;
    product *const p = find_product(executor, weights, form, rows, error, error_size);
    if (!p)
        return false;
    p->last_use = ++executor->uses;
    executor->flops += 2 * (uint64_t)rows * weights->n_in * weights->n_out;
    return form == IN_BYTES ? multiply_bytes(executor, weights, p, x, y, error, error_size)
                            : multiply(executor, weights, p, x, y, error, error_size);
}

uint64_t linear_executor_flops(const linear_executor *executor)
{
    return executor->flops;
}
