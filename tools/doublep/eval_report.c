/* eval_report.c: see eval_report.h. */
#include "eval_report.h"

#include <stdlib.h>
#include <string.h>

enum { LABEL_WIDTH = 34, COLUMN_WIDTH = 11, MAX_GROUPS = 64 };

/* Prompts that belong together: all, those of a task, or those of a context length. */
typedef struct group {
    const char *task;   /* NULL: any */
    uint32_t n_context; /* 0: any */
} group;

typedef struct groups {
    group list[MAX_GROUPS];
    size_t count;
} groups;

static bool in_group(const eval_case *c, const group *g)
{
    return (!g->task || strcmp(g->task, c->task) == 0) && (!g->n_context || g->n_context == c->n_context);
}

static bool sum_group(const eval_report *r, size_t method, const group *g, eval_result *sum)
{
    *sum = (eval_result){0};
    bool done = true;
    for (size_t i = 0; done && i < r->cases->count; i++)
        if (in_group(&r->cases->list[i], g))
            done = eval_result_add(sum, &r->results[method * r->cases->count + i]);
    if (!done)
        eval_result_free(sum);
    return done;
}

/* The tasks, or the context lengths, in the order of the prompts. */
static groups list_groups(const eval_report *r, bool by_task)
{
    groups all = {0};
    for (size_t i = 0; i < r->cases->count && all.count < MAX_GROUPS; i++) {
        const eval_case *const c = &r->cases->list[i];
        bool known = false;
        for (size_t j = 0; j < all.count; j++)
            known |= in_group(c, &all.list[j]);
        if (!known)
            all.list[all.count++] = by_task ? (group){.task = c->task} : (group){.n_context = c->n_context};
    }
    return all;
}

/* ---- Tables -------------------------------------------------------------------------------------------------------- */

typedef struct column {
    const char *title, *figure; /* a member of eval_result_figures */
    double factor;
    const char *format;
    bool attention; /* only where attention outputs were compared */
    bool texts;     /* only where answers were given */
} column;

static const column columns[] = {
    {"answers =", "whole_answers_equal", 100, "%.1f %%", false, false},
    {"tokens =", "tokens_equal", 100, "%.2f %%", false, false},
    {"KL", "kl_mean", 1, "%.5f", false, false},
    {"KL max", "kl_max", 1, "%.4f", false, false},
    {"error", "rel_error_mean", 1, "%.4f", true, false},
    {"error p99", "rel_error_p99", 1, "%.4f", true, false},
    {"mass", "mass_mean", 1, "%.4f", true, false},
    {"mass p1", "mass_p1", 1, "%.4f", true, false},
    {"under p", "under_p_share", 100, "%.1f %%", true, false},
    {"bytes", "bytes_fraction", 100, "%.2f %%", false, false},
    {"index", "index_bytes_fraction", 100, "%.2f %%", false, false},
    {"ms/token", "attention_ms_per_token", 1, "%.3f", false, false},
    {"perplexity", "perplexity", 1, "%.4f", false, true},
};
enum { N_COLUMNS = sizeof(columns) / sizeof(columns[0]) };

static void print_cell(FILE *out, const json_t *figures, const column *c)
{
    char text[32];
    const json_t *const x = json_object_get(figures, c->figure);
    if (json_is_number(x))
        snprintf(text, sizeof(text), c->format, c->factor * json_number_value(x));
    else
        snprintf(text, sizeof(text), "not finite");
    fprintf(out, "%*s", COLUMN_WIDTH, text);
}

static json_t *group_figures(const eval_report *r, size_t method, const group *g)
{
    eval_result sum;
    if (!sum_group(r, method, g, &sum))
        return NULL;
    json_t *const figures = eval_result_figures(&sum);
    eval_result_free(&sum);
    return figures;
}

static int label_width(const eval_report *r)
{
    int width = LABEL_WIDTH;
    for (size_t m = 0; m < r->methods->count; m++) {
        const int length = (int)strlen(r->methods->list[m].label) + 1;
        width = length > width ? length : width;
    }
    return width;
}

static bool print_methods(const eval_report *r, FILE *out)
{
    const int width = label_width(r);
    fprintf(out, "%-*s", width, "method");
    for (size_t i = 0; i < N_COLUMNS; i++)
        if ((r->attention || !columns[i].attention) && (r->texts || !columns[i].texts))
            fprintf(out, "%*s", COLUMN_WIDTH, columns[i].title);
    fputc('\n', out);
    for (size_t m = 0; m < r->methods->count; m++) {
        json_t *const figures = group_figures(r, m, &(group){0});
        if (!figures)
            return false;
        fprintf(out, "%-*s", width, r->methods->list[m].label);
        for (size_t i = 0; i < N_COLUMNS; i++)
            if ((r->attention || !columns[i].attention) && (r->texts || !columns[i].texts))
                print_cell(out, figures, &columns[i]);
        fputc('\n', out);
        json_decref(figures);
    }
    return true;
}

static void group_title(const group *g, char *text, size_t size)
{
    if (g->task)
        snprintf(text, size, "%s", g->task);
    else if (g->n_context % 1024 == 0)
        snprintf(text, size, "%uK", g->n_context / 1024);
    else
        snprintf(text, size, "%u", g->n_context);
}

/* One figure, a column per group. */
static bool print_groups(const eval_report *r, const groups *all, const char *title, const column *c, FILE *out)
{
    const int width = label_width(r);
    fprintf(out, "\n%-*s", width, title);
    for (size_t i = 0; i < all->count; i++) {
        char name[COLUMN_WIDTH];
        group_title(&all->list[i], name, sizeof(name));
        fprintf(out, "%*s", COLUMN_WIDTH, name);
    }
    fputc('\n', out);
    for (size_t m = 0; m < r->methods->count; m++) {
        fprintf(out, "%-*s", width, r->methods->list[m].label);
        for (size_t i = 0; i < all->count; i++) {
            json_t *const figures = group_figures(r, m, &all->list[i]);
            if (!figures)
                return false;
            print_cell(out, figures, c);
            json_decref(figures);
        }
        fputc('\n', out);
    }
    return true;
}

/* Whether the method is the first of its name. */
static bool first_of_name(const eval_report *r, size_t method)
{
    for (size_t m = 0; m < method; m++)
        if (r->methods->list[m].type == r->methods->list[method].type)
            return false;
    return true;
}

/* Of the settings of each method those that read least, for a KL that they must not exceed. */
static bool print_frontier(const eval_report *r, FILE *out)
{
    static const double limits[] = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1};
    enum { N_LIMITS = sizeof(limits) / sizeof(limits[0]) };
    const int width = label_width(r);
    fprintf(out, "\n%-*s", width, "fewest bytes with a KL of at most");
    for (size_t i = 0; i < N_LIMITS; i++)
        fprintf(out, "%*g", COLUMN_WIDTH, limits[i]);
    fputc('\n', out);
    for (size_t first = 0; first < r->methods->count; first++) {
        if (!first_of_name(r, first))
            continue;
        double least[N_LIMITS];
        for (size_t i = 0; i < N_LIMITS; i++)
            least[i] = -1;
        for (size_t m = first; m < r->methods->count; m++) {
            if (r->methods->list[m].type != r->methods->list[first].type)
                continue;
            json_t *const figures = group_figures(r, m, &(group){0});
            if (!figures)
                return false;
            const json_t *const kl = json_object_get(figures, "kl_mean");
            const double bytes = json_number_value(json_object_get(figures, "bytes_fraction"));
            for (size_t i = 0; i < N_LIMITS && json_is_number(kl); i++)
                if (json_number_value(kl) <= limits[i] && (least[i] < 0 || bytes < least[i]))
                    least[i] = bytes;
            json_decref(figures);
        }
        fprintf(out, "%-*s", width, r->methods->list[first].type->name);
        for (size_t i = 0; i < N_LIMITS; i++) {
            if (least[i] < 0)
                fprintf(out, "%*s", COLUMN_WIDTH, "-");
            else
                fprintf(out, "%*.2f %%", COLUMN_WIDTH - 2, 100 * least[i]);
        }
        fputc('\n', out);
    }
    return true;
}

bool eval_report_tables(const eval_report *r, FILE *out)
{
    static const column by_group[] = {
        {"answers equal", "whole_answers_equal", 100, "%.0f %%", false, false},
        {"KL", "kl_mean", 1, "%.5f", false, false},
        {"bytes", "bytes_fraction", 100, "%.2f %%", false, false},
    };
    bool done = print_methods(r, out);
    for (int by_task = 1; done && by_task >= 0; by_task--) {
        const groups all = list_groups(r, by_task);
        for (size_t i = 0; done && all.count > 1 && i < sizeof(by_group) / sizeof(by_group[0]); i++) {
            char title[64];
            snprintf(title, sizeof(title), "%s by %s", by_group[i].title, by_task ? "task" : "context");
            done = print_groups(r, &all, title, &by_group[i], out);
        }
    }
    bool several = false;
    for (size_t m = 0; m < r->methods->count; m++)
        several |= !first_of_name(r, m);
    return done && (!several || print_frontier(r, out));
}

bool eval_report_positions(const eval_report *r, FILE *out)
{
    const int width = label_width(r);
    for (size_t m = 0; m < r->methods->count; m++) {
        eval_result sum;
        if (!sum_group(r, m, &(group){0}, &sum))
            return false;
        if (m == 0)
            fprintf(out, "\n%-*s%*s%*s%*s%*s\n", width, "by position in the answer", 2 * COLUMN_WIDTH, "positions",
                    COLUMN_WIDTH, "KL", r->attention ? COLUMN_WIDTH : 0, r->attention ? "error" : "", COLUMN_WIDTH,
                    "bytes");
        size_t first = 0;
        for (size_t last = 16; first < sum.n_positions; first = last, last *= 2) {
            eval_position p = {0};
            last = last < sum.n_positions ? last : sum.n_positions;
            for (size_t i = first; i < last; i++) {
                p.count += sum.positions[i].count;
                p.kl += sum.positions[i].kl;
                p.error += sum.positions[i].error;
                p.bytes += sum.positions[i].bytes;
                p.bytes_dense += sum.positions[i].bytes_dense;
            }
            char range[48];
            snprintf(range, sizeof(range), "%zu - %zu", first, last - 1);
            fprintf(out, "%-*s%*s%*.5f", width, first == 0 ? r->methods->list[m].label : "", 2 * COLUMN_WIDTH, range,
                    COLUMN_WIDTH, eval_ratio(p.kl, p.count));
            if (r->attention)
                fprintf(out, "%*.4f", COLUMN_WIDTH, eval_ratio(p.error, p.count));
            fprintf(out, "%*.2f %%\n", COLUMN_WIDTH - 2, 100 * eval_ratio(p.bytes, p.bytes_dense));
        }
        eval_result_free(&sum);
    }
    return true;
}

/* ---- JSON ---------------------------------------------------------------------------------------------------------- */

static bool add_groups(const eval_report *r, size_t method, bool by_task, json_t *figures)
{
    const groups all = list_groups(r, by_task);
    json_t *const o = json_object();
    json_object_set_new(figures, by_task ? "by_task" : "by_context", o);
    for (size_t i = 0; i < all.count; i++) {
        char name[32];
        snprintf(name, sizeof(name), "%u", all.list[i].n_context);
        json_t *const one = group_figures(r, method, &all.list[i]);
        if (!one || json_object_set_new(o, by_task ? all.list[i].task : name, one) != 0)
            return false;
    }
    return true;
}

static json_t *positions_json(const eval_result *sum)
{
    json_t *const array = json_array();
    for (size_t i = 0; i < sum->n_positions; i++) {
        const eval_position *const p = &sum->positions[i];
        json_array_append_new(array, json_pack("{s:f, s:f, s:f, s:f}", "kl_mean", eval_ratio(p->kl, p->count),
                                               "rel_error_mean", eval_ratio(p->error, p->count), "mass_mean",
                                               eval_ratio(p->mass, p->count), "bytes_fraction",
                                               eval_ratio(p->bytes, p->bytes_dense)));
    }
    return array;
}

static json_t *prompts_json(const eval_report *r, size_t method)
{
    json_t *const array = json_array();
    for (size_t i = 0; i < r->cases->count; i++) {
        const eval_result *const result = &r->results[method * r->cases->count + i];
        json_t *const one = eval_result_figures(result);
        json_object_set_new(one, "prompt", json_string(r->cases->list[i].name));
        json_object_set_new(one, "context", json_integer(r->cases->list[i].n_context));
        json_array_append_new(array, one);
    }
    return array;
}

json_t *eval_report_json(const eval_report *r)
{
    json_t *const methods = json_array();
    for (size_t m = 0; m < r->methods->count; m++) {
        eval_result sum;
        if (!sum_group(r, m, &(group){0}, &sum)) {
            json_decref(methods);
            return NULL;
        }
        json_t *const one = eval_result_figures(&sum);
        json_object_set_new(one, "name", json_string(r->methods->list[m].type->name));
        json_object_set_new(one, "label", json_string(r->methods->list[m].label));
        json_object_set_new(one, "params", eval_method_params(&r->methods->list[m]));
        json_object_set_new(one, "by_position", positions_json(&sum));
        json_object_set_new(one, "by_prompt", prompts_json(r, m));
        eval_result_free(&sum);
        if (!add_groups(r, m, true, one) || !add_groups(r, m, false, one) || json_array_append_new(methods, one) != 0) {
            json_decref(methods);
            return NULL;
        }
    }
    return json_pack("{s:s, s:s, s:s, s:I, s:o}", "model", r->model_path, "kv", r->kv, "mode", r->mode, "prompts",
                     (json_int_t)r->cases->count, "methods", methods);
}
