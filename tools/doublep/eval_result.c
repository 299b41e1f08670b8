/* eval_result.c: see eval_result.h. */
#include "eval_result.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double lowest_octave = -24;

void eval_histogram_add(eval_histogram *h, double value)
{
    const double octave = value > 0 ? log2(value) - lowest_octave : 0;
    const double bin = octave * EVAL_BINS_PER_OCTAVE;
    h->counts[!(bin > 0) ? (isnan(value) ? EVAL_BINS - 1 : 0) : bin < EVAL_BINS ? (size_t)bin : EVAL_BINS - 1]++;
}

double eval_histogram_quantile(const eval_histogram *h, double p)
{
    double total = 0, below = 0;
    for (size_t i = 0; i < EVAL_BINS; i++)
        total += h->counts[i];
    if (total == 0)
        return 0;
    size_t i = 0;
    while (i + 1 < EVAL_BINS && below + h->counts[i] < p * total)
        below += h->counts[i++];
    return i == 0 ? 0 : exp2(lowest_octave + ((double)i + 0.5) / EVAL_BINS_PER_OCTAVE);
}

/* ---- The sums ------------------------------------------------------------------------------------------------------ */

typedef struct sum_field {
    const char *name;
    size_t offset;
    bool largest; /* of all, not the sum */
} sum_field;

#define SUM(m) {#m, offsetof(eval_result, m), false}
#define LARGEST(m) {#m, offsetof(eval_result, m), true}
static const sum_field sums[] = {
    SUM(prompts),       SUM(answers_equal),  SUM(dense_right),   SUM(method_right),      SUM(equal_where_right),
    SUM(answer_tokens), SUM(tokens_equal),   SUM(kl_tokens),     SUM(kl_sum),            LARGEST(kl_max),
    SUM(kl_prompt_sum), LARGEST(kl_prompt_max), SUM(nll_sum),    SUM(nll_dense_sum),     SUM(head_steps),
    SUM(error_sum),     LARGEST(error_max),  SUM(mass_sum),      SUM(under_p),           SUM(tokens_kept),
    SUM(tokens_held),   SUM(steps),          SUM(bytes_index),   SUM(bytes_rows),        SUM(bytes_dense),
    SUM(attention_ns),  SUM(append_ns),      SUM(create_ns),
    SUM(attention_median_ns),
};
enum { N_SUMS = sizeof(sums) / sizeof(sums[0]), POSITION_SUMS = sizeof(eval_position) / sizeof(double) };

static double *sum_of(const eval_result *r, const sum_field *field)
{
    return (double *)((char *)r + field->offset);
}

void eval_result_free(eval_result *r)
{
    free(r->positions);
    r->positions = NULL;
    r->n_positions = 0;
}

bool eval_result_reserve(eval_result *r, size_t n)
{
    if (n <= r->n_positions)
        return true;
    eval_position *const positions = realloc(r->positions, n * sizeof(*positions));
    if (!positions)
        return false;
    memset(positions + r->n_positions, 0, (n - r->n_positions) * sizeof(*positions));
    r->positions = positions;
    r->n_positions = n;
    return true;
}

bool eval_result_add(eval_result *r, const eval_result *other)
{
    if (!eval_result_reserve(r, other->n_positions))
        return false;
    for (size_t i = 0; i < N_SUMS; i++) {
        double *const sum = sum_of(r, &sums[i]);
        const double x = *sum_of(other, &sums[i]);
        *sum = !sums[i].largest ? *sum + x : x > *sum || isnan(x) ? x : *sum;
    }
    for (size_t i = 0; i < EVAL_BINS; i++) {
        r->error.counts[i] += other->error.counts[i];
        r->lost.counts[i] += other->lost.counts[i];
    }
    for (size_t i = 0; i < other->n_positions; i++) {
        double *const to = (double *)&r->positions[i];
        const double *const from = (const double *)&other->positions[i];
        for (size_t j = 0; j < POSITION_SUMS; j++)
            to[j] += from[j];
    }
    return true;
}

/* ---- Saving -------------------------------------------------------------------------------------------------------- */

/* JSON knows no NaN. */
static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static double number_of(const json_t *j)
{
    return json_is_number(j) ? json_number_value(j) : NAN;
}

/* Pairs of bin and count. */
static json_t *save_histogram(const eval_histogram *h)
{
    json_t *const pairs = json_array();
    for (size_t i = 0; i < EVAL_BINS; i++)
        if (h->counts[i]) {
            json_array_append_new(pairs, json_integer((json_int_t)i));
            json_array_append_new(pairs, json_integer(h->counts[i]));
        }
    return pairs;
}

static bool load_histogram(eval_histogram *h, const json_t *pairs)
{
    const size_t n = json_array_size(pairs);
    for (size_t i = 0; i + 1 < n; i += 2) {
        const json_int_t bin = json_integer_value(json_array_get(pairs, i));
        if (bin < 0 || bin >= EVAL_BINS)
            return false;
        h->counts[bin] = (uint32_t)json_integer_value(json_array_get(pairs, i + 1));
    }
    return json_is_array(pairs) && n % 2 == 0;
}

json_t *eval_result_save(const eval_result *r)
{
    json_t *const o = json_object(), *const positions = json_array();
    for (size_t i = 0; i < N_SUMS; i++)
        json_object_set_new(o, sums[i].name, number(*sum_of(r, &sums[i])));
    json_object_set_new(o, "error", save_histogram(&r->error));
    json_object_set_new(o, "lost", save_histogram(&r->lost));
    for (size_t i = 0; i < r->n_positions; i++)
        for (size_t j = 0; j < POSITION_SUMS; j++)
            json_array_append_new(positions, number(((const double *)&r->positions[i])[j]));
    json_object_set_new(o, "positions", positions);
    return o;
}

bool eval_result_load(eval_result *r, const json_t *saved)
{
    *r = (eval_result){0};
    for (size_t i = 0; i < N_SUMS; i++) {
        const json_t *const value = json_object_get(saved, sums[i].name);
        if (!value)
            return false;
        *sum_of(r, &sums[i]) = number_of(value);
    }
    const json_t *const positions = json_object_get(saved, "positions");
    const size_t n = json_array_size(positions);
    if (!load_histogram(&r->error, json_object_get(saved, "error")) ||
        !load_histogram(&r->lost, json_object_get(saved, "lost")) || !json_is_array(positions) || n % POSITION_SUMS ||
        !eval_result_reserve(r, n / POSITION_SUMS))
        return false;
    for (size_t i = 0; i < n; i++)
        ((double *)r->positions)[i] = number_of(json_array_get(positions, i));
    return true;
}

/* ---- Figures --------------------------------------------------------------------------------------------------------- */

double eval_ratio(double sum, double n)
{
    return n > 0 ? sum / n : 0;
}

json_t *eval_result_figures(const eval_result *r)
{
    const double bytes = r->bytes_index + r->bytes_rows;
    const struct {
        const char *name;
        double value;
        bool count; /* a whole number */
    } figures[] = {
        {"prompts", r->prompts, true},
        {"whole_answers_equal", eval_ratio(r->answers_equal, r->prompts), false},
        {"tokens_equal", eval_ratio(r->tokens_equal, r->answer_tokens), false},
        {"kl_mean", eval_ratio(r->kl_sum, r->kl_tokens), false},
        {"kl_max", r->kl_max, false},
        {"kl_prompt_mean", eval_ratio(r->kl_prompt_sum, r->prompts), false},
        {"kl_prompt_max", r->kl_prompt_max, false},
        {"rel_error_mean", eval_ratio(r->error_sum, r->head_steps), false},
        {"rel_error_p99", eval_histogram_quantile(&r->error, 0.99), false},
        {"rel_error_max", r->error_max, false},
        {"mass_mean", eval_ratio(r->mass_sum, r->head_steps), false},
        {"mass_p1", 1 - eval_histogram_quantile(&r->lost, 0.99), false},
        {"under_p_share", eval_ratio(r->under_p, r->head_steps), false},
        {"bytes_fraction", eval_ratio(bytes, r->bytes_dense), false},
        {"index_bytes_fraction", eval_ratio(r->bytes_index, r->bytes_dense), false},
        {"row_bytes_fraction", eval_ratio(r->bytes_rows, r->bytes_dense), false},
        {"tokens_used_fraction", eval_ratio(r->tokens_kept, r->tokens_held), false},
        {"attention_ms_per_token", eval_ratio(r->attention_median_ns * 1e-6, r->prompts), false},
        {"attention_ms_per_token_mean", eval_ratio(r->attention_ns * 1e-6, r->steps), false},
        {"append_ms_per_token", eval_ratio(r->append_ns * 1e-6, r->steps), false},
        {"index_ms_per_prompt", eval_ratio(r->create_ns * 1e-6, r->prompts), false},
        {"perplexity", exp(eval_ratio(r->nll_sum, r->answer_tokens)), false},
        {"perplexity_dense", exp(eval_ratio(r->nll_dense_sum, r->answer_tokens)), false},
        {"whole_answers_equal_count", r->answers_equal, true},
        {"answer_tokens", r->answer_tokens, true},
        {"tokens_equal_count", r->tokens_equal, true},
        {"dense_right", r->dense_right, true},
        {"right", r->method_right, true},
        {"equal_where_dense_right", eval_ratio(r->equal_where_right, r->dense_right), false},
        {"steps", r->steps, true},
    };
    json_t *const o = json_object();
    for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++) {
        const double x = figures[i].value;
        json_object_set_new(o, figures[i].name, figures[i].count ? json_integer((json_int_t)x) : number(x));
    }
    return o;
}
