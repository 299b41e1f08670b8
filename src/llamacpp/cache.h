/* The layers of llama.cpp's caches that attention was seen on: their lists, and what was written to them. */
#ifndef DP_LLAMACPP_CACHE_H
#define DP_LLAMACPP_CACHE_H

#include "ggml-backend-impl.h"
#include "llamacpp/list.h"

enum {
    CACHE_LISTS = 64,   /* per stream, at most; those of sequences that have ended serve as beginnings of others */
    CACHE_PATIENCE = 8, /* times that lists are read anew before they are found not to pay */
    RECENT_CALLS = 64   /* a list that has served so lately is in use */
};

typedef struct cache_stream {
    cell_list *list[CACHE_LISTS];
    uint32_t n_lists;
} cache_stream;

typedef struct cache_layer {
    struct cache_layer *next;
    const void *k_data, *v_data; /* of the cache tensors */
    ggml_backend_buffer_t k_buffer, v_buffer;
    uint32_t n_cells, n_streams; /* cells of a stream */
    list_shape shape;
    cache_stream *streams;
    int64_t *batch; /* cells of the rows that were written last, over all streams */
    uint32_t n_batch, batch_capacity;
    uint64_t calls;
    uint64_t asleep_until; /* no list is kept until so many calls: they did not pay */
    int patience;
} cache_layer;

/* The tensor that a view lies in. */
static inline const struct ggml_tensor *cache_root(const struct ggml_tensor *view)
{
    return view->view_src ? view->view_src : view;
}

/* The layer of a node of attention, made where it is new; NULL where there is no memory. */
cache_layer *cache_find(const struct ggml_tensor *node);

/* SET_ROWS is about to be computed: lists give up the cells that are overwritten. */
void cache_written(const struct ggml_tensor *node);

/* The tensor is about to be changed in a way that is not followed: its lists are dropped. */
void cache_changed(const struct ggml_tensor *tensor);

/* Gives all lists up. */
void cache_sleep(cache_layer *layer);

/* Gives up the list that has not served for longest of those with a copy; false where all of these serve this step. */
bool cache_drop_oldest(cache_layer *layer);

/* An empty list, not `keep`; where there are too many, in place of the one that has not served for longest. NULL where
 * there is no memory, or all serve this step. */
cell_list *cache_new_list(cache_layer *layer, cache_stream *stream, const cell_list *keep);

#endif
