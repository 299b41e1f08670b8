/* Rows that the caller keeps: where they are, and which of them changed. */
#include "kv/sequence.h"
#include "runtime/structs.h"

void dp_borrowed_rows_init(dp_borrowed_rows *rows)
{
    *rows = (dp_borrowed_rows){.struct_size = sizeof *rows};
}

dp_status dp_view_check_table(const dp_view *view, dp_runtime *rt, uint64_t from, uint64_t to, const char *caller)
{
    if (!view->table || from == to) return DP_OK;
    for (uint64_t i = from / view->block_tokens; i <= (to - 1) / view->block_tokens; i++)
        if (view->table[i] < 0 || (uint32_t)view->table[i] >= view->n_blocks)
            return dp_fail(rt, DP_ERR_INVALID,
                           "%s: block_table[%llu] is %d, must be in [0, %u), the blocks of the pool", caller,
                           (unsigned long long)i, view->table[i], view->n_blocks);
    return DP_OK;
}

/* One of the two strided arrays: defaults for strides of 0, and what can be wrong. */
typedef struct side {
    const char *name;
    const void *base;
    size_t row, token, head, block; /* bytes: of a row, and the strides */
} side;

static dp_status settle_side(const dp_sequence *s, const dp_borrowed_rows *r, side *x)
{
    dp_runtime *const rt = s->runtime;
    const size_t n_heads = s->config.n_kv_heads, alignment = dp_row_alignment(s->format.type);
    if (!x->base) return dp_fail(rt, DP_ERR_INVALID, "dp_borrow: %s is NULL", x->name);
    if (!x->token) x->token = n_heads * x->row;
    if (!x->head) x->head = x->row;
    if (!x->block && __builtin_mul_overflow(r->block_tokens, x->token, &x->block)) x->block = SIZE_MAX;
    if ((uintptr_t)x->base % alignment || x->token % alignment || x->head % alignment || x->block % alignment)
        return dp_fail(rt, DP_ERR_INVALID,
                       "dp_borrow: %s and its strides (token %zu, head %zu, block %zu bytes) must be multiples of"
                       " a row's alignment, %zu",
                       x->name, x->token, x->head, x->block, alignment);
    if (x->token < x->row || (n_heads > 1 && x->head < x->row))
        return dp_fail(rt, DP_ERR_INVALID,
                       "dp_borrow: %s_token_stride %zu and %s_head_stride %zu must not be below a row's %zu bytes",
                       x->name, x->token, x->name, x->head, x->row);
    /* The farthest row must have an address. */
    const bool paged = r->block_table != NULL;
    size_t blocks, tokens, heads, end;
    const bool too_far = __builtin_mul_overflow(paged ? r->n_blocks - 1 : 0, x->block, &blocks) ||
                         __builtin_mul_overflow((paged ? r->block_tokens : r->n_tokens) - 1, x->token, &tokens) ||
                         __builtin_mul_overflow(n_heads - 1, x->head, &heads) ||
                         __builtin_add_overflow(blocks, tokens, &end) || __builtin_add_overflow(end, heads, &end) ||
                         __builtin_add_overflow(end, x->row, &end) || end > (size_t)PTRDIFF_MAX;
    if (too_far)
        return dp_fail(rt, DP_ERR_INVALID,
                       "dp_borrow: the rows of %s reach beyond all memory: a stride or a count is"
                       " wrong",
                       x->name);
    return DP_OK;
}

dp_status dp_borrow(dp_sequence *s, uint32_t layer, const dp_borrowed_rows *rows)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_borrow: sequence is NULL");
    dp_runtime *const rt = s->runtime;
    if (!s->format.borrowed)
        return dp_fail(rt, DP_ERR_INVALID, "dp_borrow: the sequence keeps its own rows; set borrowed in its config");
    if (layer >= s->config.n_layers)
        return dp_fail(rt, DP_ERR_INVALID, "dp_borrow: layer %u of %u", layer, s->config.n_layers);
    dp_borrowed_rows r;
    dp_borrowed_rows_init(&r);
    if (!rows || !DP_STRUCT_IN(&r, rows))
        return dp_fail(rt, DP_ERR_INVALID,
                       "dp_borrow: rows is NULL or its struct_size is wrong; call dp_borrowed_rows_init first");
    const dp_layer *const l = &s->layers[layer];
    if (!r.n_tokens || r.n_tokens > UINT32_MAX || r.n_tokens < l->n_tokens)
        return dp_fail(rt, DP_ERR_INVALID,
                       "dp_borrow: n_tokens is %llu, must be in [1, 2^32 - 1], at least the %llu"
                       " tokens of the layer",
                       (unsigned long long)r.n_tokens, (unsigned long long)l->n_tokens);
    if (r.block_table && (!r.block_tokens || !r.n_blocks || r.n_blocks > INT32_MAX))
        return dp_fail(rt, DP_ERR_INVALID, "dp_borrow: block_tokens is %u and n_blocks %u, must be 1 or more",
                       r.block_tokens, r.n_blocks);
    if (r.block_table && (uintptr_t)r.block_table % _Alignof(int32_t))
        return dp_fail(rt, DP_ERR_INVALID, "dp_borrow: block_table is not aligned");
    if (!r.block_table && (r.block_tokens || r.n_blocks || r.k_block_stride || r.v_block_stride))
        return dp_fail(rt, DP_ERR_INVALID, "dp_borrow: block_table is NULL, but there are blocks");
    side k = {"k", r.k, s->format.key_bytes, r.k_token_stride, r.k_head_stride, r.k_block_stride};
    side v = {"v", r.v, s->format.value_bytes, r.v_token_stride, r.v_head_stride, r.v_block_stride};
    dp_status status = settle_side(s, &r, &k);
    if (!status) status = settle_side(s, &r, &v);
    dp_view view = {.k = r.k,
                    .v = r.v,
                    .k_token = k.token,
                    .v_token = v.token,
                    .k_block = k.block,
                    .v_block = v.block,
                    .table = r.block_table,
                    .block_tokens = r.block_tokens,
                    .n_blocks = r.n_blocks,
                    .n_tokens = r.n_tokens};
    if (!status) status = dp_view_check_table(&view, rt, 0, l->n_tokens, "dp_borrow");
    if (status) return status;
    for (uint32_t h = 0; h < s->config.n_kv_heads; h++, view.k += k.head, view.v += v.head) l->heads[h].view = view;
    return DP_OK;
}

dp_status dp_rows_changed(dp_sequence *s, uint32_t layer, uint64_t from, uint64_t to)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_rows_changed: sequence is NULL");
    const uint32_t n_layers = s->config.n_layers;
    if (!s->format.borrowed)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_rows_changed: the sequence keeps its own rows");
    if (layer != DP_ALL_LAYERS && layer >= n_layers)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_rows_changed: layer %u of %u", layer, n_layers);
    const uint32_t first = layer == DP_ALL_LAYERS ? 0 : layer, last = layer == DP_ALL_LAYERS ? n_layers : layer + 1;
    for (uint32_t l = first; l < last; l++)
        if (from > to || to > s->layers[l].n_tokens)
            return dp_fail(s->runtime, DP_ERR_INVALID, "dp_rows_changed: tokens %llu to %llu of the %llu of layer %u",
                           (unsigned long long)from, (unsigned long long)to, (unsigned long long)s->layers[l].n_tokens,
                           l);
    for (uint32_t l = first; l < last; l++)
        for (uint32_t h = 0; h < s->config.n_kv_heads; h++) {
            dp_head *const head = &s->layers[l].heads[h];
            for (uint32_t i = 0; i < head->n_segments; i++) {
                dp_segment *const seg = &head->segments[i];
                const uint64_t begin = seg->first_token;
                const uint32_t n = seg->n_tokens;
                if (dp_segment_stale(seg) || from == to || begin >= to || begin + n <= from) continue;
                dp_head_release(s, head, seg);
                *seg = (dp_segment){.first_token = begin, .n_tokens = n};
                head->n_stale++;
            }
        }
    return DP_OK;
}
