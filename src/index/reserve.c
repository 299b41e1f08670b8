/* Memory for tokens to come, taken from the system before they come. */
#include "index/build.h"
#include "kv/sequence.h"
#include "runtime/runtime.h"

/* What an arena has to hold of n more tokens of a head: segments as decoding makes them, one more than fill up, as the
 * first may come early. */
static size_t segments_bytes(const dp_sequence *s, const dp_layer *layer, size_t n)
{
    const size_t each = s->config.pending_tokens;
    const dp_segment shaped =
        dp_segment_shaped(&s->format, layer->n_tokens, each, dp_build_clusters(&s->config, layer->n_tokens, each));
    return (n / each + 1) * (dp_arena_piece_bytes(shaped.row_bytes) + dp_arena_piece_bytes(shaped.index_bytes));
}

dp_status dp_sequence_reserve(dp_sequence *s, size_t n_tokens)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_sequence_reserve: sequence is NULL");
    const dp_sequence_config *const c = &s->config;
    if (n_tokens > UINT32_MAX)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_sequence_reserve: %zu tokens are too many", n_tokens);
    for (int a = 0; a < s->n_arenas; a++) {
        size_t bytes = 0;
        for (uint32_t l = 0; l < c->n_layers; l++)
            for (uint32_t h = 0; h < c->n_kv_heads && n_tokens && !s->layers[l].dense; h++)
                if (s->layers[l].heads[h].arena == a) bytes += segments_bytes(s, &s->layers[l], n_tokens);
        if (!dp_arena_reserve(s->arenas[a], bytes))
            return dp_no_memory(s->runtime, "dp_sequence_reserve: no memory for %zu tokens", n_tokens);
    }
    return DP_OK;
}
