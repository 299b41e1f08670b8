/* rewind.c: see rewind.h. Reaches into the sequence: the library itself only ever grows. */
#include "rewind.h"

#include <stdlib.h>

#include "kv/sequence.h"

struct sequence_mark {
    uint64_t *n_tokens; /* [n_layers] */
    struct head_mark {
        uint32_t n_segments, pending_limit;
        size_t sink, tail;
    } *heads; /* [n_layers * n_kv_heads] */
};

sequence_mark *sequence_mark_create(const dp_sequence *s)
{
    const size_t n_layers = s->config.n_layers, n_heads = n_layers * s->config.n_kv_heads;
    sequence_mark *const m = calloc(1, sizeof(*m));
    if (!m)
        return NULL;
    m->n_tokens = calloc(n_layers, sizeof(*m->n_tokens));
    m->heads = calloc(n_heads, sizeof(*m->heads));
    if (!m->n_tokens || !m->heads) {
        sequence_mark_free(m);
        return NULL;
    }
    for (size_t l = 0; l < n_layers; l++)
        m->n_tokens[l] = s->layers[l].n_tokens;
    for (size_t h = 0; h < n_heads; h++)
        m->heads[h] = (struct head_mark){.n_segments = s->heads[h].n_segments,
                                         .pending_limit = s->heads[h].pending_limit,
                                         .sink = s->heads[h].sink.n,
                                         .tail = s->heads[h].tail.n};
    return m;
}

void sequence_mark_free(sequence_mark *mark)
{
    if (!mark)
        return;
    free(mark->n_tokens);
    free(mark->heads);
    free(mark);
}

bool sequence_rewind(dp_sequence *s, const sequence_mark *m)
{
    const size_t n_heads = (size_t)s->config.n_layers * s->config.n_kv_heads;
    for (size_t h = 0; h < n_heads; h++)
        if (s->heads[h].n_segments != m->heads[h].n_segments || s->heads[h].tail.n < m->heads[h].tail)
            return false;
    for (size_t l = 0; l < s->config.n_layers; l++)
        s->layers[l].n_tokens = m->n_tokens[l];
    for (size_t h = 0; h < n_heads; h++) {
        s->heads[h].sink.n = m->heads[h].sink;
        s->heads[h].tail.n = m->heads[h].tail;
        s->heads[h].pending_limit = m->heads[h].pending_limit;
    }
    return true;
}
