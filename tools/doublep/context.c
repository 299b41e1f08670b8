/* context.c: the forward pass. See context.h. */
#include "context.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <omp.h>

#include "clock.h"
#include "rope.h"
#include "rows.h"

struct model_context {
    const model *m;
    model_context_config config;
    dp_runtime *runtime;
    dp_sequence *sequences[MODEL_MAX_SEQUENCES];
    linear_executor *linear;
    size_t max_rows;
    /* Rows of one pass. */
    float *x;        /* [width], the residual stream */
    float *normed;   /* [width] */
    float *qkv;      /* [q + k + v] */
    float *q;        /* [q], rotated */
    float *attended; /* [n_heads * value_dim] */
    float *gate_up;  /* [2 * ffn_width] */
    float *ffn;      /* [ffn_width] */
    float *delta;    /* [width], what a block adds to the residual stream */
    float *rope;     /* [rope_dims], cosines and sines */
};

/* One pass of n_tokens rows through all layers. */
typedef struct pass {
    model_context *context;
    const int32_t *tokens;
    size_t n_tokens;
    uint64_t position;                 /* of the first token */
    uint32_t first_sequence, n_sequences; /* that get the keys and values */
    bool prefill;
    const dp_attention_params *params;
    size_t n_outputs; /* the last so many rows get logits */
    float *logits;
    model_counters *counters;
    char *error;
    size_t error_size;
} pass;

void model_context_config_init(model_context_config *config, const model *m)
{
    memset(config, 0, sizeof(*config));
    dp_runtime_config_init(&config->runtime);
    config->chunk = 512;
    config->n_sequences = 1;
    for (size_t i = 0; i < MODEL_MAX_SEQUENCES; i++) {
        dp_sequence_config *const s = &config->sequences[i];
        dp_sequence_config_init(s);
        s->n_layers = m->shape.n_layers;
        s->n_query_heads = m->shape.n_heads;
        s->n_kv_heads = m->shape.n_kv_heads;
        s->key_dim = m->shape.key_dim;
        s->value_dim = m->shape.value_dim;
    }
}

/* ---- Creation ------------------------------------------------------------------------------------------------- */

static bool library_failed(const model_context *context, dp_status status, char *error, size_t error_size)
{
    char reason[256];
    dp_last_error(context->runtime, reason, sizeof(reason));
    snprintf(error, error_size, "%s", reason[0] ? reason : dp_strerror(status));
    return false;
}

static bool allocate_rows(float **rows, size_t n_rows, size_t width)
{
    const size_t bytes = (n_rows * width * sizeof(float) + 63) / 64 * 64;
    *rows = aligned_alloc(64, bytes);
    return *rows != NULL;
}

static bool allocate_buffers(model_context *c)
{
    const model_shape *const s = &c->m->shape;
    const size_t n = c->max_rows, q = model_q_width(s);
    return allocate_rows(&c->x, n, s->width) && allocate_rows(&c->normed, n, s->width) &&
           allocate_rows(&c->qkv, n, q + model_k_width(s) + model_v_width(s)) && allocate_rows(&c->q, n, q) &&
           allocate_rows(&c->attended, n, (size_t)s->n_heads * s->value_dim) &&
           allocate_rows(&c->gate_up, n, 2 * (size_t)s->ffn_width) && allocate_rows(&c->ffn, n, s->ffn_width) &&
           allocate_rows(&c->delta, n, s->width) && allocate_rows(&c->rope, n, s->rope_dims);
}

static dp_status set_dense(const model_context *c, uint32_t i)
{
    dp_status status = DP_OK;
    for (uint32_t l = 0; status == DP_OK && l < c->m->shape.n_layers; l++)
        status = dp_sequence_set_dense(c->sequences[i], l, c->config.dense[i]);
    return status;
}

bool model_context_reset(model_context *context, char *error, size_t error_size)
{
    for (uint32_t i = 0; i < context->config.n_sequences; i++) {
        dp_sequence_free(context->sequences[i]);
        dp_status status = dp_sequence_create(context->runtime, &context->config.sequences[i], &context->sequences[i]);
        if (status == DP_OK)
            status = set_dense(context, i);
        if (status != DP_OK)
            return library_failed(context, status, error, error_size);
    }
    return true;
}

bool model_context_save(const model_context *context, const char *path, const void *note, size_t note_bytes, char *error,
                        size_t error_size)
{
    uint32_t i = context->config.n_sequences - 1;
    while (i > 0 && context->config.dense[i])
        i--;
    const dp_status status = dp_sequence_save(context->sequences[i], path, note, note_bytes);
    return status == DP_OK || library_failed(context, status, error, error_size);
}

bool model_context_load(model_context *context, const char *path, void *note, size_t note_size, size_t *note_bytes,
                        char *error, size_t error_size)
{
    for (uint32_t i = 0; i < context->config.n_sequences; i++) {
        dp_load_options options;
        dp_load_options_init(&options);
        options.config = &context->config.sequences[i];
        options.note = note;
        options.note_size = note_size;
        options.note_bytes = note_bytes;
        dp_sequence_free(context->sequences[i]);
        dp_status status = dp_sequence_load(context->runtime, path, &options, &context->sequences[i]);
        if (status == DP_OK)
            status = set_dense(context, i);
        if (status != DP_OK)
            return library_failed(context, status, error, error_size);
    }
    return true;
}

model_context *model_context_create(const model *m, const model_context_config *config, char *error, size_t error_size)
{
    model_context *const c = calloc(1, sizeof(*c));
    if (!c) {
        snprintf(error, error_size, "out of memory");
        return NULL;
    }
    c->m = m;
    c->config = *config;
    c->max_rows = config->chunk > DP_MAX_DECODE_QUERIES ? config->chunk : DP_MAX_DECODE_QUERIES;
    if (config->chunk < 1 || config->chunk > 65536 || config->n_sequences < 1 ||
        config->n_sequences > MODEL_MAX_SEQUENCES) {
        snprintf(error, error_size, "%u tokens in a chunk, %u sequences: must be 1 to 65536, 1 to %d", config->chunk,
                 config->n_sequences, MODEL_MAX_SEQUENCES);
        goto fail;
    }
    const dp_status status = dp_runtime_create(&config->runtime, &c->runtime);
    if (status != DP_OK) {
        library_failed(c, status, error, error_size);
        goto fail;
    }
    dp_runtime_info info;
    dp_runtime_info_init(&info);
    if (dp_runtime_get_info(c->runtime, &info) == DP_OK && info.n_threads > 0)
        omp_set_num_threads(info.n_threads);
    if (!allocate_buffers(c)) {
        snprintf(error, error_size, "out of memory");
        goto fail;
    }
    c->linear = linear_executor_create(error, error_size);
    if (!c->linear || !model_context_reset(c, error, error_size))
        goto fail;
    return c;
fail:
    model_context_free(c);
    return NULL;
}

void model_context_free(model_context *context)
{
    if (!context)
        return;
    for (uint32_t i = 0; i < MODEL_MAX_SEQUENCES; i++)
        dp_sequence_free(context->sequences[i]);
    dp_runtime_free(context->runtime);
    linear_executor_free(context->linear);
    float *const buffers[] = {context->x,       context->normed, context->qkv,   context->q,   context->attended,
                              context->gate_up, context->ffn,    context->delta, context->rope};
    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++)
        free(buffers[i]);
    free(context);
}

void model_context_set_attention(model_context *context, model_attention_fn attention, void *user)
{
    context->config.attention = attention;
    context->config.user = user;
}

const model *model_context_model(const model_context *context)
{
    return context->m;
}

dp_runtime *model_context_runtime(const model_context *context)
{
    return context->runtime;
}

uint32_t model_context_n_sequences(const model_context *context)
{
    return context->config.n_sequences;
}

dp_sequence *model_context_sequence(const model_context *context, uint32_t i)
{
    return context->sequences[i];
}

uint64_t model_context_tokens(const model_context *context, uint32_t i)
{
    return dp_sequence_tokens(context->sequences[i], 0);
}

/* ---- A pass ------------------------------------------------------------------------------------------------- */

/* Queries move to their own rows, keys turn in place. */
static void rotate_rows(const pass *p)
{
    const model_context *const c = p->context;
    const model_shape *const s = &c->m->shape;
    const size_t n_rows = p->n_tokens, n_pairs = s->rope_dims / 2, q = model_q_width(s);
    const size_t stride = q + model_k_width(s) + model_v_width(s);
#pragma omp parallel for if (n_rows > ROWS_SERIAL)
    for (size_t r = 0; r < n_rows; r++) {
        const float *const table = c->rope + r * s->rope_dims;
        float *const row = c->qkv + r * stride;
        rope_apply(table, n_pairs, s->n_heads, s->key_dim, row, c->q + r * q);
        rope_apply(table, n_pairs, s->n_kv_heads, s->key_dim, row + q, row + q);
    }
}

static bool linear(const pass *p, const linear_weights *weights, size_t n_rows, const float *x, float *y)
{
    const uint64_t start = clock_ns();
    const bool in_bytes = !p->prefill && !p->context->config.f32_steps;
    const bool done = linear_execute(p->context->linear, weights, in_bytes, n_rows, x, y, p->error, p->error_size);
    p->counters->linear_ns += clock_ns() - start;
    return done;
}

dp_status model_attention(const model_attention_call *call)
{
    const float *const q = call->q + (call->n_tokens - call->n_queries) * call->q_stride;
    if (!call->prefill)
        return dp_decode(call->sequence, call->layer, call->n_queries, q, call->params, call->out, NULL, call->stats);
    if (call->n_queries < call->n_tokens) { /* the last layer's, which are not all computed: seen all the same */
        const dp_status status = dp_observe_queries(call->sequence, call->layer, call->n_tokens, call->q);
        if (status != DP_OK)
            return status;
    }
    return call->n_queries == 0 ? DP_OK : dp_prefill(call->sequence, call->layer, call->n_queries, q, call->out, NULL);
}

static void count_decode(model_counters *counters, const dp_attention_stats *stats)
{
    counters->attention_calls++;
    counters->sparse_calls += stats->sparse != 0;
    counters->bytes += stats->bytes;
    counters->bytes_centroids += stats->bytes_centroids;
    counters->bytes_means += stats->bytes_means;
    counters->bytes_codes += stats->bytes_codes;
    counters->bytes_rows += stats->bytes_rows;
    counters->bytes_dense += stats->bytes_dense;
    counters->tokens_exact += stats->tokens_exact;
    counters->clusters += stats->clusters;
    counters->clusters_estimated += stats->clusters_estimated;
    counters->clusters_refined += stats->clusters_refined;
    counters->tokens_refined += stats->tokens_refined;
    counters->score_ns += stats->ns_score;
    counters->select_ns += stats->ns_select;
    counters->scan_ns += stats->ns_scan;
    counters->gather_ns += stats->ns_gather;
    counters->merge_ns += stats->ns_merge;
    counters->mass_estimated += stats->mass_estimated;
}

/* Stores the keys and values, then attends. */
static bool attend(const pass *p, uint32_t layer, size_t n_queries)
{
    const model_context *const c = p->context;
    const model_shape *const s = &c->m->shape;
    const size_t q_width = model_q_width(s), stride = q_width + model_k_width(s) + model_v_width(s);
    const float *const k = c->qkv + q_width, *const v = k + model_k_width(s);

    const uint64_t start = clock_ns();
    for (uint32_t i = p->first_sequence; i < p->first_sequence + p->n_sequences; i++) {
        const dp_status status = dp_append(c->sequences[i], layer, p->n_tokens, k, stride, v, stride);
        if (status != DP_OK)
            return library_failed(c, status, p->error, p->error_size);
    }
    const uint64_t appended = clock_ns();

    dp_attention_stats stats;
    dp_attention_stats_init(&stats);
    const model_attention_call call = {
        .sequence = c->sequences[p->first_sequence],
        .sequence_index = p->first_sequence,
        .layer = layer,
        .prefill = p->prefill,
        .position = p->position,
        .n_tokens = p->n_tokens,
        .n_queries = n_queries,
        .q = c->q,
        .q_stride = q_width,
        .k = k,
        .v = v,
        .kv_stride = stride,
        .params = p->params,
        .out = c->attended,
        .stats = p->prefill ? NULL : &stats,
    };
    const dp_status status =
        c->config.attention ? c->config.attention(c->config.user, &call) : model_attention(&call);
    if (status != DP_OK)
        return library_failed(c, status, p->error, p->error_size);
    p->counters->append_ns += appended - start;
    p->counters->attention_ns += clock_ns() - appended;
    if (!p->prefill) {
        count_decode(p->counters, &stats);
    } else {
        /* Query i of the last n_queries sees first + i tokens, itself among them. */
        const uint64_t first = p->position + p->n_tokens - n_queries + 1;
        const uint64_t seen = n_queries * first + n_queries * (n_queries - (n_queries > 0)) / 2;
        p->counters->attention_flops += 2 * seen * s->n_heads * (s->key_dim + s->value_dim);
    }
    return true;
}

static bool run_layer(const pass *p, uint32_t index)
{
    const model_context *const c = p->context;
    const model_shape *const s = &c->m->shape;
    const model_layer *const layer = &c->m->layers[index];
    /* After a prompt's keys and values are stored in the last layer, only the rows whose logits are wanted go on. */
    const bool whole = !p->prefill || index + 1 < s->n_layers;
    const size_t n_queries = whole ? p->n_tokens : p->n_outputs;

    rows_norm(p->n_tokens, s->width, layer->attention_norm, s->norm_epsilon, c->x, c->normed);
    if (!linear(p, layer->qkv, p->n_tokens, c->normed, c->qkv))
        return false;
    rotate_rows(p);
    if (!attend(p, index, n_queries) || !linear(p, layer->output, n_queries, c->attended, c->delta))
        return false;

    float *const x = c->x + (p->n_tokens - n_queries) * s->width;
    rows_add(n_queries, s->width, c->delta, x);
    rows_norm(n_queries, s->width, layer->ffn_norm, s->norm_epsilon, x, c->normed);
    if (!linear(p, layer->gate_up, n_queries, c->normed, c->gate_up))
        return false;
    rows_swiglu(n_queries, s->ffn_width, c->gate_up, c->ffn);
    if (!linear(p, layer->down, n_queries, c->ffn, c->delta))
        return false;
    rows_add(n_queries, s->width, c->delta, x);
    return true;
}

static bool embed(const pass *p)
{
    const model_context *const c = p->context;
    const model_shape *const s = &c->m->shape;
    const size_t n_rows = p->n_tokens;
    for (size_t r = 0; r < n_rows; r++)
        if (p->tokens[r] < 0 || (uint32_t)p->tokens[r] >= s->n_vocab) {
            snprintf(p->error, p->error_size, "token %d is not one of the model's %u", p->tokens[r], s->n_vocab);
            return false;
        }
#pragma omp parallel for if (n_rows > ROWS_SERIAL)
    for (size_t r = 0; r < n_rows; r++) {
        gguf_tensor_to_f32(c->m->embedding, (uint64_t)p->tokens[r], 1, c->x + r * s->width);
        rope_table(p->position + r, s->rope_dims / 2, c->m->rope_frequencies, c->rope + r * s->rope_dims);
    }
    return true;
}

static bool run_pass(const pass *p)
{
    const model_context *const c = p->context;
    const model_shape *const s = &c->m->shape;
    const uint64_t start = clock_ns();
    if (!embed(p))
        return false;
    for (uint32_t i = 0; i < s->n_layers; i++)
        if (!run_layer(p, i))
            return false;
    const float *const x = c->x + (p->n_tokens - p->n_outputs) * s->width;
    rows_norm(p->n_outputs, s->width, c->m->output_norm, s->norm_epsilon, x, c->normed);
    if (!linear(p, c->m->logits, p->n_outputs, c->normed, p->logits))
        return false;
    p->counters->tokens += p->n_tokens;
    p->counters->total_ns += clock_ns() - start;
    return true;
}

/* ---- Prompts and single tokens -------------------------------------------------------------------------------- */

static bool fits(const model_context *c, uint64_t position, size_t n_tokens, char *error, size_t error_size)
{
    const uint32_t limit = c->m->shape.n_context;
    if (position <= limit && n_tokens <= limit - position)
        return true;
    snprintf(error, error_size, "%llu tokens are more than the model's context of %u",
             (unsigned long long)(position + n_tokens), limit);
    return false;
}

bool model_prefill(model_context *context, const int32_t *tokens, size_t n_tokens, float *logits,
                   model_progress_fn progress, void *user, model_counters *counters, char *error, size_t error_size)
{
    const uint64_t start = model_context_tokens(context, 0);
    for (uint32_t i = 1; i < context->config.n_sequences; i++)
        if (model_context_tokens(context, i) != start) {
            snprintf(error, error_size, "a prompt needs sequences of equal length");
            return false;
        }
    if (!fits(context, start, n_tokens, error, error_size))
        return false;
    model_counters ignored = {0};
    const uint64_t flops = linear_executor_flops(context->linear);
    pass p = {
        .context = context,
        .first_sequence = 0,
        .n_sequences = context->config.n_sequences,
        .prefill = true,
        .logits = logits,
        .counters = counters ? counters : &ignored,
        .error = error,
        .error_size = error_size,
    };
    for (size_t done = 0; done < n_tokens; done += p.n_tokens) {
        p.tokens = tokens + done;
        p.position = start + done;
        p.n_tokens = n_tokens - done < context->config.chunk ? n_tokens - done : context->config.chunk;
        p.n_outputs = logits && done + p.n_tokens == n_tokens;
        if (!run_pass(&p))
            return false;
        if (progress)
            progress(user, done + p.n_tokens, n_tokens);
    }
    p.counters->linear_flops += linear_executor_flops(context->linear) - flops;
    return true;
}

bool model_build_index(model_context *context, uint32_t i, char *error, size_t error_size)
{
    const dp_status status = dp_build_index(context->sequences[i], DP_ALL_LAYERS);
    return status == DP_OK || library_failed(context, status, error, error_size);
}

bool model_decode(model_context *context, uint32_t i, const int32_t *tokens, size_t n_tokens,
                  const dp_attention_params *params, float *logits, model_counters *counters, char *error,
                  size_t error_size)
{
    if (n_tokens < 1 || n_tokens > DP_MAX_DECODE_QUERIES || i >= context->config.n_sequences) {
        snprintf(error, error_size, "%zu tokens to decode in sequence %u: must be 1 to %d, one of %u", n_tokens, i,
                 DP_MAX_DECODE_QUERIES, context->config.n_sequences);
        return false;
    }
    const uint64_t position = model_context_tokens(context, i);
    if (!fits(context, position, n_tokens, error, error_size))
        return false;
    model_counters ignored = {0};
    const pass p = {
        .context = context,
        .tokens = tokens,
        .n_tokens = n_tokens,
        .position = position,
        .first_sequence = i,
        .n_sequences = 1,
        .prefill = false,
        .params = params,
        .n_outputs = logits ? n_tokens : 0,
        .logits = logits,
        .counters = counters ? counters : &ignored,
        .error = error,
        .error_size = error_size,
    };
    const uint64_t flops = linear_executor_flops(context->linear);
    if (!run_pass(&p))
        return false;
    p.counters->linear_flops += linear_executor_flops(context->linear) - flops;
    return true;
}
