/* compare.c: `doublep compare`: prompts from a file, each prefilled once and answered densely and with Double-P. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "options.h"
#include "progress.h"
#include "prompts.h"
#include "report.h"
#include "utf8.h"

typedef struct compare_options {
    model_options common;
    const char *prompts, *select;
    size_t limit;
} compare_options;

/* Sums over the prompts. */
typedef struct totals {
    size_t prompts, equal, right[SESSION_MAX_METHODS];
    model_counters decode[SESSION_MAX_METHODS];
} totals;

enum { KEY_PROMPTS = 0x200, KEY_SELECT, KEY_LIMIT };
enum { DENSE = 0, DOUBLE_P = 1 }; /* methods, in the order that model_options puts them */
enum { NAME_WIDTH = 14, ANSWER_WIDTH = 40 };

static const struct argp_option options_list[] = {
    {"prompts", KEY_PROMPTS, "FILE", 0, "JSON Lines with task, id, context, question and answer; gzip is understood", 0},
    {"select", KEY_SELECT, "TASK[:ID]", 0, "Only the prompts of this task, or the one with this id", 0},
    {"limit", KEY_LIMIT, "N", 0, "At most N prompts", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    compare_options *const o = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &o->common;
        return 0;
    case KEY_PROMPTS:
        o->prompts = arg;
        return 0;
    case KEY_SELECT:
        o->select = arg;
        return 0;
    case KEY_LIMIT:
        o->limit = option_integer(state, "limit", arg, 1, SIZE_MAX);
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "\"%s\" is not an option", arg);
        return 0;
    case ARGP_KEY_END:
        if (!o->prompts)
            argp_error(state, "--prompts FILE is missing");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static bool answers_equal(const session_answer *a, const session_answer *b)
{
    return a->stop == b->stop && a->ids.count == b->ids.count &&
           (a->ids.count == 0 || memcmp(a->ids.ids, b->ids.ids, a->ids.count * sizeof(a->ids.ids[0])) == 0);
}

/* Whether the answer is the expected one, but for what comes after it. */
static bool answer_right(const session_answer *a, const char *expected)
{
    const size_t n = strlen(expected);
    return a->length >= n && memcmp(a->text, expected, n) == 0;
}

static double speed_up(const model_counters *dense, const model_counters *sparse)
{
    const double before = (double)dense->attention_ns * (double)sparse->tokens;
    const double after = (double)sparse->attention_ns * (double)dense->tokens;
    return after > 0 ? before / after : 0;
}

static double bytes_percent(const model_counters *sparse)
{
    return sparse->bytes_dense ? 100 * (double)sparse->bytes / (double)sparse->bytes_dense : 0;
}

/* An answer in a column: its first line, cut to the column's width in characters. */
static void print_answer(const session_answer *a)
{
    char *const copy = utf8_valid_copy(a->text ? a->text : "", a->length);
    const char *s = copy ? copy : "";
    while (*s == ' ' || *s == '\n')
        s++;
    int width = 0;
    for (; *s && *s != '\n' && width < ANSWER_WIDTH; width++) {
        putchar((unsigned char)*s < ' ' ? ' ' : *s);
        for (s++; ((unsigned char)*s & 0xc0) == 0x80; s++)
            putchar(*s);
    }
    printf("%*s", ANSWER_WIDTH - width + 2, "");
    free(copy);
}

static void print_header(void)
{
    printf("%-*s%-*s%-*s%-7s%8s%10s\n", NAME_WIDTH, "prompt", ANSWER_WIDTH + 2, "dense answer", ANSWER_WIDTH + 2,
           "Double-P answer", "equal", "bytes", "attention");
    fflush(stdout);
}

static void print_row(const prompt_record *record, const session_answer *answers)
{
    printf("%-*s", NAME_WIDTH, record->name);
    print_answer(&answers[DENSE]);
    print_answer(&answers[DOUBLE_P]);
    printf("%-7s%6.1f %%%9.1fx\n", answers_equal(&answers[DENSE], &answers[DOUBLE_P]) ? "yes" : "no",
           bytes_percent(&answers[DOUBLE_P].decode), speed_up(&answers[DENSE].decode, &answers[DOUBLE_P].decode));
    fflush(stdout);
}

static void add_totals(totals *t, const prompt_record *record, const session_answer *answers)
{
    t->prompts++;
    t->equal += answers_equal(&answers[DENSE], &answers[DOUBLE_P]);
    for (size_t i = 0; i < SESSION_MAX_METHODS; i++) {
        t->right[i] += answer_right(&answers[i], record->answer);
        t->decode[i].tokens += answers[i].decode.tokens;
        t->decode[i].attention_ns += answers[i].decode.attention_ns;
        t->decode[i].bytes += answers[i].decode.bytes;
        t->decode[i].bytes_dense += answers[i].decode.bytes_dense;
    }
}

static json_t *totals_json(const totals *t)
{
    json_t *const o = json_object();
    json_object_set_new(o, "prompts", json_integer((json_int_t)t->prompts));
    json_object_set_new(o, "equal", json_integer((json_int_t)t->equal));
    json_object_set_new(o, "dense_right", json_integer((json_int_t)t->right[DENSE]));
    json_object_set_new(o, "double_p_right", json_integer((json_int_t)t->right[DOUBLE_P]));
    json_object_set_new(o, "bytes_ratio", json_real(bytes_percent(&t->decode[DOUBLE_P]) / 100));
    json_object_set_new(o, "attention_speed_up", json_real(speed_up(&t->decode[DENSE], &t->decode[DOUBLE_P])));
    return o;
}

/* How many tokens the expected answer has; 0 and a message on failure. */
static size_t count_tokens(const tokenizer *t, const char *text, char *error, size_t error_size)
{
    tokenizer_ids ids = {0};
    const bool done = tokenizer_encode(t, text, strlen(text), false, &ids, error, error_size);
    const size_t n = done && ids.count == 0 ? 1 : ids.count; /* an empty answer still takes a token to be wrong */
    tokenizer_ids_free(&ids);
    return n;
}

/* One prompt: prints its row, or adds its report to `results`. */
static bool compare_one(const compare_options *o, model_context *context, const prompt_record *record, totals *t,
                        json_t *results, char *error, size_t error_size)
{
    const model_options *const common = &o->common;
    const model *const m = model_context_model(context);
    const session_settings settings = {
        .max_tokens = common->max_tokens ? common->max_tokens
                                         : count_tokens(m->tokenizer, record->answer, error, error_size)};
    session_prefill_result prefill = {0};
    session_answer answers[SESSION_MAX_METHODS] = {0};
    session_prompt prompt = {0};
    bool done = settings.max_tokens > 0 &&
                session_prompt_create(&prompt, m->tokenizer, record->context, record->context_length,
                                      record->question, record->question_length, error, error_size) &&
                model_context_reset(context, error, error_size);
    if (done) {
        progress bar;
        progress_start(&bar, record->name);
        done = session_prefill(context, &prompt, common->methods, progress_show, &bar, &prefill, error, error_size);
        progress_end(&bar);
    }
    for (uint32_t i = 0; done && i < SESSION_MAX_METHODS; i++)
        done = session_answer_create(context, i, &prompt, &common->methods[i], &settings, &answers[i], error,
                                     error_size);
    if (done) {
        const report r = {common, context, &prompt, &prefill, answers};
        add_totals(t, record, answers);
        if (results) {
            json_t *const one = report_json(&r);
            json_object_set_new(one, "prompt", json_string(record->name));
            json_object_set_new(one, "expected", json_string(record->answer));
            json_object_set_new(one, "equal", json_boolean(answers_equal(&answers[DENSE], &answers[DOUBLE_P])));
            json_array_append_new(results, one);
        } else {
            print_row(record, answers);
            if (t->prompts == 1 && o->limit == 1) {
                putchar('\n');
                report_table(&r, stdout);
            }
        }
    }
    for (size_t i = 0; i < SESSION_MAX_METHODS; i++)
        session_answer_free(&answers[i]);
    session_prompt_free(&prompt);
    return done;
}

static bool compare_all(const compare_options *o, model_context *context, const prompt_list *list, char *error,
                        size_t error_size)
{
    totals t = {0};
    json_t *const results = o->common.json ? json_array() : NULL;
    if (!results)
        print_header();
    bool done = true;
    for (size_t i = 0; done && i < list->count; i++)
        done = compare_one(o, context, &list->records[i], &t, results, error, error_size);
    if (done && results) {
        json_t *const object = json_pack("{s:O, s:o}", "results", results, "total", totals_json(&t));
        if (!object || json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) != 0) {
            snprintf(error, error_size, "the JSON object could not be written");
            done = false;
        }
        putchar('\n');
        json_decref(object);
    } else if (done && t.prompts > 1) {
        printf("\n%zu prompts: %zu equal answers; right: dense %zu, Double-P %zu; Double-P reads %.1f %% of the bytes, "
               "attention %.1f times as fast\n",
               t.prompts, t.equal, t.right[DENSE], t.right[DOUBLE_P], bytes_percent(&t.decode[DOUBLE_P]),
               speed_up(&t.decode[DENSE], &t.decode[DOUBLE_P]));
    }
    json_decref(results);
    if (done && (fflush(stdout) != 0 || ferror(stdout))) {
        snprintf(error, error_size, "stdout cannot be written");
        done = false;
    }
    return done;
}

int cmd_compare(int argc, char **argv)
{
    static const struct argp_child children[] = {{&model_options_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        .options = options_list,
        .parser = parse,
        .doc = "Answer prompts from a file densely and with Double-P attention, from one prefill each.\v"
               "Prints a line per prompt: both answers, whether they are equal token for token, the bytes that "
               "Double-P's attention read as a share of dense attention's, and how many times as fast it was.",
        .children = children,
    };
    compare_options o = {.limit = SIZE_MAX};
    model_options_init(&o.common);
    o.common.dense = o.common.double_p = true;
    if (argp_parse(&argp, argc, argv, 0, NULL, &o) != 0)
        return EXIT_USAGE;
    if (o.common.n_methods != SESSION_MAX_METHODS) {
        fprintf(stderr, "doublep compare: always compares dense with double-p; leave --attention out\n");
        return EXIT_USAGE;
    }

    char error[512];
    model *m = NULL;
    model_context *context = NULL;
    prompt_list list = {0};
    const bool done = prompts_load(&list, o.prompts, o.select, o.limit, error, sizeof(error)) &&
                      model_options_open(&o.common, &m, &context, error, sizeof(error)) &&
                      compare_all(&o, context, &list, error, sizeof(error));
    prompts_free(&list);
    model_context_free(context);
    model_free(m);
    if (!done)
        fprintf(stderr, "doublep compare: %s\n", error);
    return done ? 0 : EXIT_RUNTIME;
}
