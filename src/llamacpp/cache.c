/* Layers, and the writes to their buffers that come past the graph. */
#include "llamacpp/cache.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llamacpp/plugin.h"

/* A buffer with layers in it, with the functions that it had. */
typedef struct hooked_buffer {
    struct hooked_buffer *next;
    ggml_backend_buffer_t buffer;
    struct ggml_backend_buffer_i was;
} hooked_buffer;

/* Contexts of llama.cpp may live in several threads: the two lists of the process are behind a lock. A layer itself is
 * its context's, which does one thing at a time. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static cache_layer *layers;
static hooked_buffer *hooked;

static void drop_lists(cache_layer *layer)
{
    for (uint32_t s = 0; layer->streams && s < layer->n_streams; s++) {
        cache_stream *const stream = &layer->streams[s];
        while (stream->n_lists) list_free(stream->list[--stream->n_lists]);
    }
    layer->n_batch = 0;
    layer->patience = CACHE_PATIENCE;
    layer->asleep_until = 0;
}

static void free_layer(cache_layer *layer)
{
    drop_lists(layer);
    free(layer->streams);
    free(layer->batch);
    free(layer);
}

/* A cell, counted over all streams, is being overwritten. */
static void forget_cell(cache_layer *layer, size_t cell)
{
    if (cell / layer->n_cells >= layer->n_streams) return;
    const cache_stream *const stream = &layer->streams[cell / layer->n_cells];
    for (uint32_t l = 0; l < stream->n_lists; l++) list_forget(stream->list[l], (uint32_t)(cell % layer->n_cells));
}

/* ---- Writes past the graph: state restore, copies between streams, clear, free ---- */

static void buffer_changed(ggml_backend_buffer_t buffer)
{
    pthread_mutex_lock(&lock);
    for (cache_layer *l = layers; l; l = l->next)
        if (l->k_buffer == buffer || l->v_buffer == buffer) drop_lists(l);
    pthread_mutex_unlock(&lock);
}

void cache_changed(const struct ggml_tensor *tensor)
{
    const void *const data = cache_root(tensor)->data;
    pthread_mutex_lock(&lock);
    for (cache_layer *l = layers; l; l = l->next)
        if (l->k_data == data || l->v_data == data) drop_lists(l);
    pthread_mutex_unlock(&lock);
}

static struct ggml_backend_buffer_i functions_of(ggml_backend_buffer_t buffer)
{
    struct ggml_backend_buffer_i was = {0};
    pthread_mutex_lock(&lock);
    for (const hooked_buffer *h = hooked; h; h = h->next)
        if (h->buffer == buffer) was = h->was;
    pthread_mutex_unlock(&lock);
    return was;
}

static void memset_tensor(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor, uint8_t value, size_t offset,
                          size_t size)
{
    cache_changed(tensor);
    functions_of(buffer).memset_tensor(buffer, tensor, value, offset, size);
}

/* Rows of a tensor are about to be written over: lists give up the cells whose bytes change. A state that is restored
 * over itself, as before each round of a benchmark, changes none. */
static void compare_rows(cache_layer *layer, const struct ggml_tensor *root, const char *at, const char *data,
                         size_t size)
{
    const char *const end = at + size;
    while (at < end) {
        const size_t from_start = (size_t)(at - (const char *)root->data), row = from_start / root->nb[1];
        const size_t rest = root->nb[1] - from_start % root->nb[1], left = (size_t)(end - at);
        const size_t n = rest < left ? rest : left;
        if (memcmp(at, data, n) != 0) forget_cell(layer, row);
        at += n;
        data += n;
    }
}

static void set_tensor(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor, const void *data, size_t offset,
                       size_t size)
{
    const struct ggml_tensor *const root = cache_root(tensor);
    pthread_mutex_lock(&lock);
    for (cache_layer *l = layers; l; l = l->next)
        if (l->k_data == root->data || l->v_data == root->data)
            compare_rows(l, root, (const char *)tensor->data + offset, data, size);
    pthread_mutex_unlock(&lock);
    functions_of(buffer).set_tensor(buffer, tensor, data, offset, size);
}

static void set_tensor_2d(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor, const void *data, size_t offset,
                          size_t size, size_t n_copies, size_t stride_tensor, size_t stride_data)
{
    cache_changed(tensor);
    functions_of(buffer).set_tensor_2d(buffer, tensor, data, offset, size, n_copies, stride_tensor, stride_data);
}

static bool cpy_tensor(ggml_backend_buffer_t buffer, const struct ggml_tensor *src, struct ggml_tensor *dst)
{
    cache_changed(dst);
    return functions_of(buffer).cpy_tensor(buffer, src, dst);
}

static void clear(ggml_backend_buffer_t buffer, uint8_t value)
{
    buffer_changed(buffer);
    functions_of(buffer).clear(buffer, value);
}

static void free_buffer(ggml_backend_buffer_t buffer)
{
    pthread_mutex_lock(&lock);
    for (cache_layer **l = &layers; *l;) {
        cache_layer *const layer = *l;
        if (layer->k_buffer != buffer && layer->v_buffer != buffer) {
            l = &layer->next;
            continue;
        }
        *l = layer->next;
        free_layer(layer);
    }
    for (hooked_buffer **h = &hooked; *h; h = &(*h)->next)
        if ((*h)->buffer == buffer) {
            hooked_buffer *const entry = *h;
            *h = entry->next;
            buffer->iface = entry->was;
            free(entry);
            break;
        }
    pthread_mutex_unlock(&lock);
    if (buffer->iface.free_buffer) buffer->iface.free_buffer(buffer);
}

/* With the lock held. */
static bool hook(ggml_backend_buffer_t buffer)
{
    for (const hooked_buffer *h = hooked; h; h = h->next)
        if (h->buffer == buffer) return true;
    hooked_buffer *const entry = malloc(sizeof *entry);
    if (!entry) return false;
    *entry = (hooked_buffer){.next = hooked, .buffer = buffer, .was = buffer->iface};
    hooked = entry;
    struct ggml_backend_buffer_i *const f = &buffer->iface;
    if (f->memset_tensor) f->memset_tensor = memset_tensor;
    if (f->set_tensor) f->set_tensor = set_tensor;
    if (f->set_tensor_2d) f->set_tensor_2d = set_tensor_2d;
    if (f->cpy_tensor) f->cpy_tensor = cpy_tensor;
    if (f->clear) f->clear = clear;
    f->free_buffer = free_buffer;
    return true;
}

/* ---- Layers ---- */

static list_shape shape_of(const struct ggml_tensor *node)
{
    const struct ggml_tensor *const q = node->src[0], *const k = node->src[1], *const v = node->src[2];
    list_shape shape = {.k_type = k->type,
                        .v_type = v->type,
                        .query_heads = (uint32_t)q->ne[2],
                        .kv_heads = (uint32_t)k->ne[2],
                        .key_dim = (uint32_t)k->ne[0],
                        .value_dim = (uint32_t)v->ne[0]};
    memcpy(&shape.scale, (const float *)node->op_params + 0, sizeof shape.scale);
    memcpy(&shape.softcap, (const float *)node->op_params + 2, sizeof shape.softcap);
    unsigned number = 0;
    if (sscanf(cache_root(k)->name, "cache_k_l%u", &number) == 1) shape.layer = number;
    shape.dense = plugin.settings.epsilon == 0 || (number < PLUGIN_LAYERS && plugin.settings.dense[number]);
    return shape;
}

static bool same_shape(const list_shape *a, const list_shape *b)
{
    return a->k_type == b->k_type && a->v_type == b->v_type && a->query_heads == b->query_heads &&
           a->kv_heads == b->kv_heads && a->key_dim == b->key_dim && a->value_dim == b->value_dim &&
           a->scale == b->scale && a->softcap == b->softcap && a->dense == b->dense && a->layer == b->layer;
}

static cache_layer *new_layer(const struct ggml_tensor *k, const struct ggml_tensor *v, const list_shape *shape)
{
    cache_layer *const layer = calloc(1, sizeof *layer);
    if (!layer) return NULL;
    *layer = (cache_layer){.next = layers,
                           .k_data = k->data,
                           .v_data = v->data,
                           .k_buffer = k->buffer,
                           .v_buffer = v->buffer,
                           .n_cells = (uint32_t)k->ne[1],
                           .n_streams = (uint32_t)k->ne[2],
                           .shape = *shape,
                           .patience = CACHE_PATIENCE};
    layer->streams = calloc(layer->n_streams, sizeof *layer->streams);
    if (!layer->streams || !hook(k->buffer) || !hook(v->buffer)) {
        free_layer(layer);
        return NULL;
    }
    layers = layer;
    return layer;
}

cache_layer *cache_find(const struct ggml_tensor *node)
{
    const struct ggml_tensor *const k = cache_root(node->src[1]), *const v = cache_root(node->src[2]);
    const list_shape shape = shape_of(node);
    pthread_mutex_lock(&lock);
    cache_layer *layer = layers;
    /* A model and the one that drafts for it may see the same cache with other heads. */
    while (layer && (layer->k_data != k->data || layer->v_data != v->data || !same_shape(&layer->shape, &shape)))
        layer = layer->next;
    if (!layer) layer = new_layer(k, v, &shape);
    pthread_mutex_unlock(&lock);
    return layer;
}

static int64_t index_at(const struct ggml_tensor *indices, int64_t i)
{
    const char *const at = (const char *)indices->data + (size_t)i * indices->nb[0];
    return indices->type == GGML_TYPE_I64 ? *(const int64_t *)at : *(const int32_t *)at;
}

/* Remembers what rows of a batch went to which cells: the node of attention that follows has a query for each. */
static void remember(cache_layer *layer, const struct ggml_tensor *indices)
{
    const uint32_t n = (uint32_t)indices->ne[0];
    layer->n_batch = 0;
    if (n > layer->batch_capacity) {
        int64_t *const grown = realloc(layer->batch, n * sizeof *grown);
        if (!grown) return;
        layer->batch = grown;
        layer->batch_capacity = n;
    }
    for (uint32_t i = 0; i < n; i++) layer->batch[i] = index_at(indices, i);
    layer->n_batch = n;
}

void cache_written(const struct ggml_tensor *node)
{
    const struct ggml_tensor *const root = cache_root(node), *const indices = node->src[1];
    pthread_mutex_lock(&lock);
    for (cache_layer *layer = layers; layer; layer = layer->next) {
        if (layer->k_data != root->data && layer->v_data != root->data) continue;
        /* A row is a token's, and its number counts from the start of the tensor. */
        const bool tokens = node->ne[0] == root->ne[0] && node->ne[2] == 1 && node->ne[3] == 1 &&
                            node->data == root->data && node->ne[1] <= (int64_t)layer->n_cells * layer->n_streams &&
                            indices->ne[1] == 1 && indices->ne[2] == 1;
        if (!tokens) {
            drop_lists(layer);
            continue;
        }
        for (int64_t i = 0; i < indices->ne[0]; i++) forget_cell(layer, (size_t)index_at(indices, i));
        if (layer->k_data == root->data) remember(layer, indices);
    }
    pthread_mutex_unlock(&lock);
}

void cache_sleep(cache_layer *layer)
{
    drop_lists(layer);
}

bool cache_drop_oldest(cache_layer *layer)
{
    cache_stream *stream = NULL;
    cell_list **oldest = NULL;
    for (uint32_t s = 0; s < layer->n_streams; s++)
        for (uint32_t l = 0; l < layer->streams[s].n_lists; l++) {
            cell_list **const list = &layer->streams[s].list[l];
            if (!(*list)->sequence || (*list)->used == layer->calls) continue;
            if (oldest && (*oldest)->used <= (*list)->used) continue;
            oldest = list;
            stream = &layer->streams[s];
        }
    if (!oldest) return false;
    if (layer->calls - (*oldest)->used < RECENT_CALLS) layer->patience--; /* it will be wanted again, and take another's place */
    list_free(*oldest);
    *oldest = stream->list[--stream->n_lists];
    return true;
}

cell_list *cache_new_list(cache_layer *layer, cache_stream *stream, const cell_list *keep)
{
    cell_list **oldest = NULL;
    for (uint32_t l = 0; l < stream->n_lists; l++) {
        cell_list **const list = &stream->list[l];
        if (*list == keep || (*list)->used == layer->calls) continue; /* it serves this very step */
        if (!(*list)->n) return *list;
        if (!oldest || (*list)->used < (*oldest)->used) oldest = list;
    }
    if (stream->n_lists == CACHE_LISTS && !oldest) return NULL;
    cell_list *const list = list_create(layer->n_cells);
    if (!list) return NULL;
    if (stream->n_lists < CACHE_LISTS) return stream->list[stream->n_lists++] = list;
    list_free(*oldest);
    return *oldest = list;
}
