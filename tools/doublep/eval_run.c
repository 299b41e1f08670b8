/* eval_run.c: see eval_run.h. */
#include "eval_run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "eval_logits.h"
#include "truth.h"

struct eval_runner {
    const model *m;
    eval_run_config config;
    const eval_store *store;
    model_context *context; /* its own sequence only counts tokens: methods keep their own */
    /* Of the present prompt. */
    const eval_case *prompt;
    method_cache *cache; /* the prompt's rows, then those of the method's tokens */
    truth *truth;
    uint8_t *kept;
    size_t stride;
    float *truth_out;
    double *truth_mass;
    eval_reference reference; /* what dense attention said */
    eval_methods dense;       /* the reference's method: one */
    /* Of the present method; its index stays for the next that can use it. */
    const eval_method *method;
    void *state;
    eval_result *result;
    eval_position *position; /* of the step that runs */
    uint64_t *step_ns;       /* [steps] attention of each token so far */
};

/* ---- The attention of every layer ---------------------------------------------------------------------------------- */

/* Compares the method's output with dense attention from the same query over the same cache. */
static bool compare(eval_runner *r, const model_attention_call *call)
{
    const method_cache *const c = r->cache;
    const size_t dim = c->format.value_dim;
    const uint64_t n = c->n_tokens[call->layer];
    const double target = eval_method_target(r->method);
    eval_result *const result = r->result;
    for (uint32_t h = 0; h < c->n_kv_heads; h++)
        memset(r->kept + h * r->stride, 0, n);
    r->method->type->mark(r->state, call->layer, r->kept, r->stride);
    if (!truth_attend(r->truth, call->layer, call->q, r->kept, r->stride, r->truth_out, r->truth_mass))
        return false;
    uint64_t n_kept = 0;
    for (uint32_t h = 0; h < c->n_kv_heads; h++)
        for (uint64_t t = 0; t < n; t++)
            n_kept += r->kept[h * r->stride + t];
    result->tokens_kept += (double)n_kept;
    result->tokens_held += (double)(n * c->n_kv_heads);
    double error_sum = 0, mass_sum = 0;
    for (size_t h = 0; h < c->n_query_heads; h++) {
        double difference = 0, norm = 0;
        for (size_t j = 0; j < dim; j++) {
            const double wanted = (double)r->truth_out[h * dim + j], got = (double)call->out[h * dim + j];
            difference += (got - wanted) * (got - wanted);
            norm += wanted * wanted;
        }
        const double error = norm > 0 ? sqrt(difference / norm) : sqrt(difference);
        const double mass = r->truth_mass[h] < 1 ? r->truth_mass[h] : 1;
        eval_histogram_add(&result->error, error);
        eval_histogram_add(&result->lost, 1 - mass);
        result->error_max = error > result->error_max || isnan(error) ? error : result->error_max;
        result->under_p += mass < target;
        error_sum += error;
        mass_sum += mass;
    }
    result->head_steps += c->n_query_heads;
    result->error_sum += error_sum;
    result->mass_sum += mass_sum;
    if (r->position) {
        r->position->error += error_sum / c->n_query_heads / c->n_layers;
        r->position->mass += mass_sum / c->n_query_heads / c->n_layers;
    }
    return true;
}

/* A model_attention_fn. */
static dp_status attention(void *user, const model_attention_call *call)
{
    eval_runner *const r = user;
    method_cache *const c = r->cache;
    if (call->prefill)
        method_cache_observe(c, call->layer, c->n_tokens[call->layer], call->n_tokens, call->q, call->q_stride);
    if (!method_cache_append(c, call->layer, call->n_tokens, call->k, call->kv_stride, call->v, call->kv_stride))
        return DP_ERR_NO_MEMORY;
    if (call->prefill)
        return model_attention(call);
    method_report report = {0};
    const uint64_t start = clock_ns();
    const bool appended = r->method->type->append(r->state, call->layer, call->k, call->v);
    const uint64_t middle = clock_ns();
    if (!appended || !r->method->type->attend(r->state, call->layer, call->q, call->out, &report))
        return DP_ERR_NO_MEMORY;
    const uint64_t end = clock_ns();
    eval_result *const result = r->result;
    const double dense = (double)method_cache_dense_bytes(c, call->layer);
    result->append_ns += (double)(middle - start);
    result->attention_ns += (double)(end - middle - report.own_ns);
    result->bytes_index += (double)report.bytes_index;
    result->bytes_rows += (double)report.bytes_rows;
    result->bytes_dense += dense;
    if (r->position) {
        r->position->bytes += (double)(report.bytes_index + report.bytes_rows);
        r->position->bytes_dense += dense;
    }
    return !r->config.attention_metrics || compare(r, call) ? DP_OK : DP_ERR_NO_MEMORY;
}

/* ---- A method's tokens --------------------------------------------------------------------------------------------- */

static bool no_memory(char *error, size_t error_size)
{
    snprintf(error, error_size, "out of memory");
    return false;
}

static void drop_state(eval_runner *r)
{
    if (r->state)
        r->method->type->free(r->state);
    r->state = NULL;
    r->method = NULL;
}

/* The method's state at the end of the prompt: the last method's index where it is the same. */
static bool make_state(eval_runner *r, const eval_method *method, eval_result *result, char *error, size_t error_size)
{
    method_cache_truncate(r->cache, r->prompt->prefill.count);
    if (dp_sequence_truncate(model_context_sequence(r->context, 0), DP_ALL_LAYERS, r->prompt->prefill.count) != DP_OK)
        return no_memory(error, error_size);
    const char *const wrong = method->type->check(method->settings, r->cache);
    if (wrong) {
        snprintf(error, error_size, "%s: %s", method->label, wrong);
        return false;
    }
    const uint64_t start = clock_ns();
    const bool reused = r->state && r->method->type == method->type &&
                        method_same_index(method->type, r->method->settings, method->settings) &&
                        method->type->restart(r->state, method->settings);
    if (!reused) {
        char reason[300];
        drop_state(r);
        r->state = method->type->create(r->cache, method->settings, reason, sizeof(reason));
        if (!r->state) {
            snprintf(error, error_size, "%s: %s", method->label, reason);
            return false;
        }
    }
    r->method = method;
    result->create_ns = (double)(clock_ns() - start);
    return true;
}

/* Feeds one token; logits may be NULL. */
static bool feed(eval_runner *r, int32_t id, eval_position *position, float *logits, char *error, size_t error_size)
{
    const double before = r->result->attention_ns;
    r->position = position;
    const bool done = model_decode(r->context, 0, &id, 1, NULL, logits, NULL, error, error_size);
    r->step_ns[(size_t)r->result->steps++] = (uint64_t)(r->result->attention_ns - before);
    return done;
}

static int by_size(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double median(uint64_t *x, size_t n)
{
    qsort(x, n, sizeof(*x), by_size);
    return n ? (double)x[n / 2] : 0;
}

/* Answer positions that there can be. */
static size_t most_positions(const eval_runner *r)
{
    return r->config.mode == EVAL_FORCED ? r->prompt->answer.count : r->config.max_tokens;
}

static bool ends_answer(const model *m, int32_t id)
{
    return id == tokenizer_eos(m->tokenizer) || id == tokenizer_eot(m->tokenizer);
}

/* Likeliest token; of the continuation, which must not end, the likeliest that ends nothing. */
static int32_t next_token(const eval_runner *r, const float *logits)
{
    const bool endless = r->config.mode == EVAL_CONTINUE;
    int32_t best = -1;
    for (int32_t i = 0; i < (int32_t)r->m->shape.n_vocab; i++)
        if ((best < 0 || logits[i] > logits[best]) && !(endless && ends_answer(r->m, i)))
            best = i;
    return best;
}

/* What is noted of the answer while it is run. */
typedef struct answer_notes {
    bool reference; /* this is the run that the others are compared with */
    bool diverged;  /* its tokens are not the reference's any more */
    bool failed;    /* no memory */
    size_t n_right; /* it said so many of the expected tokens before it said another */
} answer_notes;

static int32_t note_position(eval_runner *r, size_t position, const float *logits, answer_notes *notes)
{
    const int32_t likeliest = next_token(r, logits);
    const tokenizer_ids *const expected = &r->prompt->answer;
    if (notes->reference && !eval_reference_push(&r->reference, logits, likeliest)) {
        notes->failed = true;
        return -1;
    }
    if (position < expected->count && notes->n_right == position && likeliest == expected->ids[position])
        notes->n_right++;
    if (!notes->diverged && position < r->reference.count)
        eval_score_position(&r->reference, position, logits, likeliest,
                            r->config.mode == EVAL_FORCED ? expected->ids[position] : r->reference.ids[position],
                            r->result);
    switch (r->config.mode) {
    case EVAL_FORCED:
        return expected->ids[position];
    case EVAL_CONTINUE:
        return r->reference.ids[position];
    case EVAL_GENERATE:
        notes->diverged |= position >= r->reference.count || likeliest != r->reference.ids[position];
        return ends_answer(r->m, likeliest) ? -1 : likeliest;
    }
    return -1;
}

/* Question and answer through one method. */
static bool run_tokens(eval_runner *r, const eval_method *method, answer_notes *notes, eval_result *result, char *error,
                       size_t error_size)
{
    const tokenizer_ids *const question = &r->prompt->question, *const expected = &r->prompt->answer;
    const size_t most = most_positions(r);
    float *const logits = malloc(r->m->shape.n_vocab * sizeof(*logits));
    r->result = result;
    bool done = (logits && eval_result_reserve(result, most)) || no_memory(error, error_size);
    done = done && make_state(r, method, result, error, error_size);
    for (size_t i = 0; done && i + 1 < question->count; i++)
        done = feed(r, question->ids[i], NULL, NULL, error, error_size);
    int32_t id = question->ids[question->count - 1];
    size_t n = 0;
    for (; done && n < most && id >= 0; n++) {
        result->positions[n].count++;
        done = feed(r, id, &result->positions[n], logits, error, error_size);
        if (done)
            id = note_position(r, n, logits, notes);
    }
    free(logits);
    if (done && notes->failed)
        done = no_memory(error, error_size);
    result->n_positions = n;
    result->prompts = 1;
    result->attention_median_ns = median(r->step_ns, (size_t)result->steps);
    if (done)
        eval_score_answer(&r->reference, expected->ids, expected->count, notes->n_right, notes->diverged, result);
    return done;
}

/* ---- Prompts ------------------------------------------------------------------------------------------------------- */

eval_runner *eval_runner_create(const model *m, const eval_run_config *config, const eval_store *store, char *error,
                                size_t error_size)
{
    eval_runner *const r = calloc(1, sizeof(*r));
    if (!r) {
        snprintf(error, error_size, "out of memory");
        return NULL;
    }
    r->m = m;
    r->config = *config;
    r->store = store;
    model_context_config c;
    model_context_config_init(&c, m);
    c.runtime.n_threads = config->n_threads;
    c.runtime.pinning = config->pinning;
    c.chunk = config->chunk;
    c.f32_steps = true; /* rounding to bytes would make whole steps of last-bit differences */
    c.attention = attention;
    c.user = r;
    /* The sequence of the prefill stays unclustered as far as that goes. */
    c.dense[0] = true;
    c.sequences[0].type = config->kv_type;
    c.sequences[0].segment_tokens = c.sequences[0].pending_tokens = 65536;
    c.sequences[0].tokens_per_cluster = 256;
    c.sequences[0].iterations = 1;
    c.sequences[0].outlier_share = 0;
    r->context = model_context_create(m, &c, error, error_size);
    r->truth_out = malloc((size_t)m->shape.n_heads * m->shape.value_dim * sizeof(*r->truth_out));
    r->truth_mass = malloc(m->shape.n_heads * sizeof(*r->truth_mass));
    if (r->context && !(r->truth_out && r->truth_mass))
        snprintf(error, error_size, "out of memory");
    if (r->context && r->truth_out && r->truth_mass && eval_methods_add(&r->dense, "dense", error, error_size))
        return r;
    eval_runner_free(r);
    return NULL;
}

static void drop_prompt(eval_runner *r)
{
    drop_state(r);
    eval_reference_free(&r->reference);
    truth_free(r->truth);
    method_cache_free(r->cache);
    free(r->kept);
    free(r->step_ns);
    r->truth = NULL;
    r->cache = NULL;
    r->kept = NULL;
    r->step_ns = NULL;
    r->prompt = NULL;
}

void eval_runner_free(eval_runner *r)
{
    if (!r)
        return;
    drop_prompt(r);
    model_context_free(r->context);
    eval_methods_free(&r->dense);
    free(r->truth_out);
    free(r->truth_mass);
    free(r);
}

/* The context's own sequence, which has the first tokens, gets the others' rows that the store had. */
static bool fill_sequence(eval_runner *r, size_t first, char *error, size_t error_size)
{
    const method_cache *const c = r->cache;
    const size_t n = c->n_tokens[0] - first;
    float *const k = malloc((n * c->n_kv_heads * c->format.key_dim + 1) * sizeof(*k));
    float *const v = malloc((n * c->n_kv_heads * c->format.value_dim + 1) * sizeof(*v));
    bool done = (k && v) || no_memory(error, error_size);
    for (uint32_t l = 0; done && n > 0 && l < c->n_layers; l++) {
        method_cache_read(c, l, first, n, k, v);
        if (dp_append(model_context_sequence(r->context, 0), l, n, k, 0, v, 0) != DP_OK) {
            dp_last_error(c->runtime, error, error_size);
            done = false;
        }
    }
    free(k);
    free(v);
    return done;
}

/* The rows depend on the model, the tokens before the question, and the type that they are kept in. */
static uint64_t rows_hash(const eval_runner *r)
{
    const tokenizer_ids *const ids = &r->prompt->prefill;
    const uint64_t parts[2] = {r->config.model_hash, (uint64_t)r->config.kv_type};
    return eval_hash(eval_hash(eval_hash_start, parts, sizeof(parts)), ids->ids, ids->count * sizeof(ids->ids[0]));
}

static bool prefill(eval_runner *r, size_t first, size_t last, progress *bar, char *error, size_t error_size)
{
    return first == last || model_prefill(r->context, r->prompt->prefill.ids + first, last - first, NULL,
                                          bar ? progress_show : NULL, bar, NULL, error, error_size);
}

/* The first tokens are always read, for their queries; the rows of all may be in the store. */
static bool make_rows(eval_runner *r, progress *bar, char *error, size_t error_size)
{
    const size_t n = r->prompt->prefill.count, first = n < METHOD_QUERY_TOKENS ? n : METHOD_QUERY_TOKENS;
    const uint64_t hash = rows_hash(r);
    if (!prefill(r, 0, first, NULL, error, error_size))
        return false;
    size_t done = first;
    if (eval_store_has_rows(r->store, hash)) {
        if (eval_store_load_rows(r->store, hash, r->cache) && r->cache->n_tokens[0] == n)
            return fill_sequence(r, first, error, error_size);
        done = 0; /* a damaged file: the rows may be anything */
        if (!model_context_reset(r->context, error, error_size))
            return false;
    }
    method_cache_truncate(r->cache, done);
    return prefill(r, done, n, bar, error, error_size) &&
           eval_store_save_rows(r->store, hash, r->cache, error, error_size);
}

bool eval_runner_start(eval_runner *r, const eval_case *c, progress *bar, eval_result *dense, char *error,
                       size_t error_size)
{
    drop_prompt(r);
    r->prompt = c;
    const size_t capacity = c->prefill.count + c->question.count + most_positions(r);
    model_context_config config;
    model_context_config_init(&config, r->m);
    dp_sequence_config shape = config.sequences[0];
    shape.type = r->config.kv_type;
    if (!model_context_reset(r->context, error, error_size))
        return false;
    r->stride = capacity;
    r->cache = method_cache_create(model_context_runtime(r->context), &shape, capacity);
    r->kept = malloc(shape.n_kv_heads * capacity);
    r->step_ns = malloc((c->question.count + most_positions(r)) * sizeof(*r->step_ns));
    r->truth = r->cache ? truth_create(r->cache) : NULL;
    if (!r->cache || !r->kept || !r->truth || !r->step_ns)
        return no_memory(error, error_size);
    if (!make_rows(r, bar, error, error_size) || !model_build_index(r->context, 0, error, error_size))
        return false;
    r->reference = (eval_reference){.n_vocab = r->m->shape.n_vocab};
    answer_notes notes = {.reference = true};
    return run_tokens(r, &r->dense.list[0], &notes, dense, error, error_size);
}

bool eval_runner_measure(eval_runner *r, const eval_method *method, eval_result *result, char *error, size_t error_size)
{
    answer_notes notes = {0};
    return run_tokens(r, method, &notes, result, error, error_size);
}
