/* report.c: see report.h. */
#include "report.h"

#include <stdlib.h>
#include <sys/resource.h>

#include "utf8.h"

static double per(double sum, uint64_t n)
{
    return n ? sum / (double)n : 0;
}

static double per_second(double n, uint64_t ns)
{
    return ns ? n * 1e9 / (double)ns : 0;
}

report_means report_get_means(const session_answer *answer)
{
    const model_counters *const c = &answer->decode;
    return (report_means){
        .total_ms = per((double)c->total_ns * 1e-6, c->tokens),
        .attention_ms = per((double)c->attention_ns * 1e-6, c->tokens),
        .append_ms = per((double)c->append_ns * 1e-6, c->tokens),
        .bytes = per((double)c->bytes, c->tokens),
        .dense_bytes = per((double)c->bytes_dense, c->tokens),
    };
}

static uint64_t peak_resident_bytes(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss * 1024 : 0;
}

static uint64_t prefill_flops(const report *r)
{
    return r->prefill->counters.linear_flops + r->prefill->counters.attention_flops;
}

static dp_runtime_info runtime_info(const report *r)
{
    dp_runtime_info info;
    dp_runtime_info_init(&info);
    dp_runtime_get_info(model_context_runtime(r->context), &info);
    return info;
}

/* ---- Table ---------------------------------------------------------------------------------------------------- */

typedef double (*figure_fn)(const session_answer *answer);

static double decode_rate(const session_answer *a)
{
    return per_second((double)a->decode.tokens, a->decode.total_ns);
}
static double total_ms(const session_answer *a)
{
    return report_get_means(a).total_ms;
}
static double attention_ms(const session_answer *a)
{
    return report_get_means(a).attention_ms;
}
static double append_ms(const session_answer *a)
{
    return report_get_means(a).append_ms;
}
static double megabytes(const session_answer *a)
{
    return report_get_means(a).bytes * 1e-6;
}
static double share_of_dense(const session_answer *a)
{
    const report_means m = report_get_means(a);
    return m.dense_bytes > 0 ? 100 * m.bytes / m.dense_bytes : 0;
}
static double clusters_scored(const session_answer *a)
{
    return per((double)a->decode.clusters, a->decode.tokens);
}
static double clusters_refined(const session_answer *a)
{
    return per((double)a->decode.clusters_refined, a->decode.tokens);
}
static double tokens_read(const session_answer *a)
{
    return per((double)(a->decode.tokens_exact + a->decode.tokens_refined), a->decode.tokens);
}
static double cache_megabytes(const session_answer *a)
{
    return (double)a->memory.reserved_bytes * 1e-6;
}

void report_table(const report *r, FILE *out)
{
    static const struct {
        const char *label;
        figure_fn figure;
        int decimals;
    } rows[] = {
        {"decode, tokens/s", decode_rate, 1},
        {"decode, ms/token", total_ms, 2},
        {"  attention, ms/token", attention_ms, 3},
        {"  cache and index, ms/token", append_ms, 3},
        {"bytes read by attention, MB/token", megabytes, 2},
        {"  share of dense, %", share_of_dense, 1},
        {"clusters scored per token", clusters_scored, 0},
        {"clusters refined per token", clusters_refined, 0},
        {"rows read per token", tokens_read, 0},
        {"cache with index, MB", cache_megabytes, 1},
    };
    const model_counters *const p = &r->prefill->counters;
    fprintf(out, "prefill  %llu tokens in %.2f s: %.0f tokens/s, %.1f GFLOP/s\n", (unsigned long long)p->tokens,
            (double)p->total_ns * 1e-9, per_second((double)p->tokens, p->total_ns),
            per_second((double)prefill_flops(r), p->total_ns) * 1e-9);
    fprintf(out, "index    %.1f ms after the prompt\n\n", r->prefill->index_ms);
    fprintf(out, "%-34s", "");
    for (size_t i = 0; i < r->options->n_methods; i++)
        fprintf(out, "%12s", r->options->methods[i].name);
    fputc('\n', out);
    for (size_t row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) {
        fprintf(out, "%-34s", rows[row].label);
        for (size_t i = 0; i < r->options->n_methods; i++)
            fprintf(out, "%12.*f", rows[row].decimals, rows[row].figure(&r->answers[i]));
        fputc('\n', out);
    }
}

/* ---- JSON ----------------------------------------------------------------------------------------------------- */

static json_t *integer(uint64_t n)
{
    return json_integer((json_int_t)n);
}

static json_t *ids_json(const tokenizer_ids *ids)
{
    json_t *const array = json_array();
    for (size_t i = 0; i < ids->count; i++)
        json_array_append_new(array, json_integer(ids->ids[i]));
    return array;
}

static json_t *memory_json(const dp_memory *m)
{
    json_t *const o = json_object();
    json_object_set_new(o, "plain_bytes", integer(m->plain_bytes));
    json_object_set_new(o, "row_bytes", integer(m->row_bytes));
    json_object_set_new(o, "index_bytes", integer(m->index_bytes));
    json_object_set_new(o, "reserved_bytes", integer(m->reserved_bytes));
    json_object_set_new(o, "clustered_tokens", integer(m->clustered_tokens));
    json_object_set_new(o, "clusters", integer(m->clusters));
    return o;
}

/* The decimal number that was meant: 0.9, not the 0.89999998 that is nearest to it as a float. */
static json_t *short_real(float x)
{
    char text[32];
    snprintf(text, sizeof(text), "%.7g", (double)x);
    return json_real(strtod(text, NULL));
}

static json_t *params_json(const dp_attention_params *p)
{
    json_t *const o = json_object();
    json_object_set_new(o, "refine", json_string(p->refine == DP_REFINE_TOP_P ? "top-p" : "budget"));
    json_object_set_new(o, "p1", short_real(p->p1));
    if (p->refine == DP_REFINE_TOP_P)
        json_object_set_new(o, "p2", short_real(p->p2));
    else
        json_object_set_new(o, "epsilon", short_real(p->epsilon));
    return o;
}

/* Adds what one method did to o. */
static void add_answer(json_t *o, const session_method *method, const session_answer *a)
{
    static const char *const stops[] = {
        [SESSION_STOP_LENGTH] = "length", [SESSION_STOP_EOS] = "eos", [SESSION_STOP_CONTEXT] = "context"};
    const report_means means = report_get_means(a);
    const model_counters *const c = &a->decode;
    char *const text = utf8_valid_copy(a->text ? a->text : "", a->length);
    json_object_set_new(o, "attention", json_string(method->name));
    if (method->params.method != DP_DENSE)
        json_object_set_new(o, "parameters", params_json(&method->params));
    json_object_set_new(o, "text", json_string(text ? text : ""));
    free(text);
    json_object_set_new(o, "token_ids", ids_json(&a->ids));
    json_object_set_new(o, "stop", json_string(stops[a->stop]));
    json_object_set_new(o, "decode_tokens", integer(c->tokens));
    json_object_set_new(o, "decode_ms_per_token", json_real(means.total_ms));
    json_object_set_new(o, "decode_tokens_per_s", json_real(decode_rate(a)));
    json_object_set_new(o, "attention_ms_per_token", json_real(means.attention_ms));
    json_object_set_new(o, "append_ms_per_token", json_real(means.append_ms));
    json_object_set_new(o, "linear_ms_per_token", json_real(per((double)c->linear_ns * 1e-6, c->tokens)));
    json_object_set_new(o, "attention_bytes_per_token", json_real(means.bytes));
    json_object_set_new(o, "dense_bytes_per_token", json_real(means.dense_bytes));
    json_object_set_new(o, "bytes_ratio", json_real(means.dense_bytes > 0 ? means.bytes / means.dense_bytes : 0));
    json_object_set_new(o, "centroid_bytes_per_token", json_real(per((double)c->bytes_centroids, c->tokens)));
    json_object_set_new(o, "mean_bytes_per_token", json_real(per((double)c->bytes_means, c->tokens)));
    json_object_set_new(o, "code_bytes_per_token", json_real(per((double)c->bytes_codes, c->tokens)));
    json_object_set_new(o, "row_bytes_per_token", json_real(per((double)c->bytes_rows, c->tokens)));
    json_object_set_new(o, "clusters_per_token", json_real(clusters_scored(a)));
    json_object_set_new(o, "clusters_estimated_per_token", json_real(per((double)c->clusters_estimated, c->tokens)));
    json_object_set_new(o, "clusters_refined_per_token", json_real(clusters_refined(a)));
    json_object_set_new(o, "rows_read_per_token", json_real(tokens_read(a)));
    json_object_set_new(o, "mass_estimated", json_real(per(c->mass_estimated, c->attention_calls)));
    json_object_set_new(o, "sparse_calls", integer(c->sparse_calls));
    json_object_set_new(o, "cache", memory_json(&a->memory));
}

json_t *report_json(const report *r)
{
    const model_counters *const p = &r->prefill->counters;
    const dp_runtime_info info = runtime_info(r);
    json_t *const o = json_object();
    if (!o)
        return NULL;
    if (r->options->n_methods == 1) {
        add_answer(o, &r->options->methods[0], &r->answers[0]);
    } else {
        json_t *const methods = json_array();
        for (size_t i = 0; i < r->options->n_methods; i++) {
            json_t *const one = json_object();
            add_answer(one, &r->options->methods[i], &r->answers[i]);
            json_array_append_new(methods, one);
        }
        json_object_set_new(o, "methods", methods);
    }
    json_object_set_new(o, "model", json_string(r->options->model_path));
    json_object_set_new(o, "kv", json_string(kv_type_name(r->options->kv_type)));
    json_object_set_new(o, "isa", json_string(dp_isa_name(info.isa)));
    json_object_set_new(o, "threads", json_integer(info.n_threads));
    json_object_set_new(o, "prefill_tokens", integer(p->tokens));
    json_object_set_new(o, "question_tokens", integer(r->prompt->tail.count));
    json_object_set_new(o, "prefill_ms", json_real((double)p->total_ns * 1e-6));
    json_object_set_new(o, "prefill_tokens_per_s", json_real(per_second((double)p->tokens, p->total_ns)));
    json_object_set_new(o, "prefill_linear_ms", json_real((double)p->linear_ns * 1e-6));
    json_object_set_new(o, "prefill_attention_ms", json_real((double)p->attention_ns * 1e-6));
    json_object_set_new(o, "prefill_append_ms", json_real((double)p->append_ns * 1e-6));
    json_object_set_new(o, "prefill_flops", integer(prefill_flops(r)));
    json_object_set_new(o, "prefill_flops_per_s", json_real(per_second((double)prefill_flops(r), p->total_ns)));
    json_object_set_new(o, "index_ms", json_real(r->prefill->index_ms));
    json_object_set_new(o, "weight_bytes", integer(model_context_model(r->context)->weight_bytes));
    json_object_set_new(o, "peak_resident_bytes", integer(peak_resident_bytes()));
    return o;
}
