/* Lists of cells and their copies. */
#include "llamacpp/list.h"

#include <stdlib.h>
#include <string.h>

#include "llamacpp/plugin.h"

enum { CHUNK = 512, MANY_THREADS = 1024 /* as the library allows: llama.cpp names the number for each graph */ };

cell_list *list_create(uint32_t n_cells)
{
    cell_list *const list = calloc(1, sizeof *list);
    if (!list) return NULL;
    list->n_cells = n_cells;
    list->cell = malloc(n_cells * sizeof *list->cell);
    list->mask = malloc(n_cells * sizeof *list->mask);
    if (!list->cell || !list->mask) {
        list_free(list);
        return NULL;
    }
    for (uint32_t c = 0; c < n_cells; c++) list->mask[c] = MASK_HIDDEN;
    return list;
}

static void drop_copy(cell_list *list)
{
    dp_sequence_free(list->sequence);
    list->sequence = NULL;
    list->copied = 0;
}

void list_free(cell_list *list)
{
    if (!list) return;
    drop_copy(list);
    free(list->cell);
    free(list->mask);
    free(list);
}

void list_truncate(cell_list *list, uint32_t n)
{
    if (n >= list->n) return;
    for (uint32_t i = n; i < list->n; i++) list->mask[list->cell[i]] = MASK_HIDDEN;
    list->n = n;
    if (list->copied > n) list->copied = n;
    while (list->end && list->mask[list->end - 1] != MASK_SEEN) list->end--;
}

void list_forget(cell_list *list, uint32_t cell)
{
    if (list->mask[cell] != MASK_SEEN) return;
    uint32_t i = list->n;
    while (list->cell[--i] != cell) {
    }
    list_truncate(list, i);
}

void list_fork(cell_list *list, const cell_list *from, uint32_t n)
{
    list_truncate(list, 0);
    drop_copy(list);
    for (uint32_t i = 0; i < n; i++) list_push(list, from->cell[i]);
    /* Without a copy the tokens are read from the cache once more. */
    if (!from->sequence || dp_sequence_fork(from->sequence, &list->sequence)) return;
    list->copied = from->copied < n ? from->copied : n;
}

void list_push(cell_list *list, uint32_t cell)
{
    list->cell[list->n++] = cell;
    list->mask[cell] = MASK_SEEN;
    if (cell >= list->end) list->end = cell + 1;
}

uint32_t list_common(const cell_list *list, const uint16_t *mask, uint32_t n_kv)
{
    uint32_t n = 0;
    while (n < list->n && list->cell[n] < n_kv && mask[list->cell[n]] == MASK_SEEN) n++;
    return n;
}

bool list_equals(const cell_list *list, const uint16_t *mask, uint32_t n_kv)
{
    return list->end <= n_kv && memcmp(list->mask, mask, n_kv * sizeof *mask) == 0;
}

/* ---- The copy ---- */

static dp_runtime *runtime;

bool list_create_runtime(void)
{
    dp_runtime_config config;
    dp_runtime_config_init(&config);
    config.n_threads = MANY_THREADS;
    config.memory_limit = plugin.settings.memory;
    return runtime || dp_runtime_create(&config, &runtime) == DP_OK;
}

dp_runtime *list_runtime(void)
{
    return runtime;
}

bool list_open(cell_list *list, const list_shape *shape)
{
    if (list->sequence && dp_sequence_truncate(list->sequence, 0, list->copied)) drop_copy(list);
    if (list->sequence) return true;
    dp_sequence_config config;
    dp_sequence_config_init(&config);
    config.n_layers = 1;
    config.n_query_heads = shape->query_heads;
    config.n_kv_heads = shape->kv_heads;
    config.key_dim = shape->key_dim;
    config.value_dim = shape->value_dim;
    config.type = plugin.settings.int8 ? DP_INT8 : shape->k_type == GGML_TYPE_BF16 ? DP_BF16 : DP_F16;
    config.scale = shape->scale;
    config.softcap = shape->softcap;
    /* Layers take turns in clustering what was decoded. */
    config.pending_tokens -= shape->layer % 16 * (config.pending_tokens / 32);
    if (dp_sequence_create(list_runtime(), &config, &list->sequence)) return false;
    if (shape->dense) dp_sequence_set_dense(list->sequence, 0, 1);
    return true;
}

static void read_rows(const list_rows *rows, const list_shape *shape, const uint32_t *cell, uint32_t n, float *k,
                      float *v)
{
    const ggml_to_float_t k_to_float = ggml_get_type_traits(shape->k_type)->to_float,
                          v_to_float = ggml_get_type_traits(shape->v_type)->to_float;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t h = 0; h < shape->kv_heads; h++) {
            k_to_float(rows->k + cell[i] * rows->k_row + h * rows->k_head, k, shape->key_dim);
            v_to_float(rows->v + cell[i] * rows->v_row + h * rows->v_head, v, shape->value_dim);
            k += shape->key_dim;
            v += shape->value_dim;
        }
}

static bool append(cell_list *list, const list_shape *shape, const list_rows *rows, uint32_t n, float *buffer)
{
    float *const v = buffer + (size_t)CHUNK * shape->kv_heads * shape->key_dim;
    read_rows(rows, shape, list->cell + list->copied, n, buffer, v);
    if (dp_append(list->sequence, 0, n, buffer, 0, v, 0)) return false;
    list->copied += n;
    return true;
}

bool list_copy(cell_list *list, const list_shape *shape, const list_rows *rows, uint32_t fresh)
{
    if (list->copied == list->n) return true;
    float *const buffer =
        malloc((size_t)CHUNK * shape->kv_heads * (shape->key_dim + shape->value_dim) * sizeof *buffer);
    bool ok = buffer;
    while (ok && list->copied < list->n) {
        uint32_t n = list->n - list->copied;
        if (n > fresh) n -= fresh;
        ok = append(list, shape, rows, n < CHUNK ? n : CHUNK, buffer);
    }
    free(buffer);
    return ok;
}
