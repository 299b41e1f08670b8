/* bench_plot.c: the picture: step time against context, one line per method, drawn by gnuplot from a run's JSON. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "bench.h"

enum { MAX_LINES = 16 };

static const char *const colours[] = {"#444444", "#0060ad", "#c2410c", "#15803d", "#7e22ce", "#b45309", "#0e7490", "#be123c"};

/* The names of all methods, in the order of their first appearance. */
static size_t collect_names(const json_t *sweep, const char **names)
{
    size_t n = 0, i, j;
    json_t *context, *method;
    json_array_foreach(sweep, i, context) {
        json_array_foreach(json_object_get(context, "methods"), j, method) {
            const char *const name = json_string_value(json_object_get(method, "name"));
            bool known = !name || strchr(name, '"') || n == MAX_LINES;
            for (size_t k = 0; !known && k < n; k++)
                known = strcmp(names[k], name) == 0;
            if (!known)
                names[n++] = name;
        }
    }
    return n;
}

static void write_data(FILE *out, const json_t *sweep, const char *name, size_t number)
{
    size_t i, j;
    json_t *context, *method;
    fprintf(out, "$method%zu << END\n", number);
    json_array_foreach(sweep, i, context) {
        const double tokens = json_number_value(json_object_get(context, "context"));
        json_array_foreach(json_object_get(context, "methods"), j, method) {
            const char *const other = json_string_value(json_object_get(method, "name"));
            if (other && strcmp(other, name) == 0 && tokens > 0)
                fprintf(out, "%.0f %.9g %.9g %.9g\n", tokens, json_number_value(json_object_get(method, "ms_median")),
                        json_number_value(json_object_get(method, "ms_p10")),
                        json_number_value(json_object_get(method, "ms_p90")));
        }
    }
    fputs("END\n", out);
}

/* Powers of two by their usual names. */
static void write_ticks(FILE *out, const json_t *sweep)
{
    size_t i;
    json_t *context;
    const char *separator = "";
    fputs("set xtics (", out);
    json_array_foreach(sweep, i, context) {
        const long long tokens = (long long)json_integer_value(json_object_get(context, "context"));
        const char *const unit = tokens % (1 << 20) == 0 ? "M" : tokens % 1024 == 0 ? "K" : "";
        const long long scaled = *unit == 'M' ? tokens >> 20 : *unit == 'K' ? tokens >> 10 : tokens;
        fprintf(out, "%s\"%lld%s\" %lld", separator, scaled, unit, tokens);
        separator = ", ";
    }
    fputs(")\n", out);
}

static void write_script(FILE *out, const json_t *figures, const json_t *sweep, const char *path)
{
    const char *names[MAX_LINES];
    const size_t n = collect_names(sweep, names);
    const json_t *const shape = json_object_get(figures, "shape"), *const machine = json_object_get(figures, "machine");
    const char *const shape_name = json_string_value(json_object_get(shape, "name"));
    const char *const inputs = json_string_value(json_object_get(figures, "inputs"));
    const char *const kv = json_string_value(json_object_get(shape, "kv"));
    for (size_t i = 0; i < n; i++)
        write_data(out, sweep, names[i], i);
    char what[96]; /* a file of somebody else's may hold anything */
    snprintf(what, sizeof(what), "%s", inputs ? inputs : "");
    for (char *c = what; *c; c++)
        if (strchr("\"\\\n", *c))
            *c = ' ';
    /* Its own background, so that the picture reads the same on a light and on a dark page. */
    fprintf(out, "set terminal svg size 760,480 font 'sans-serif,14' background '#ffffff'\n"
                 "set output \"%s\"\n"
                 "set title \"One layer's decode step: %s, %s, %lld threads (%s)\\n%s\" noenhanced\n"
                 "set xlabel 'tokens in the cache'\nset ylabel 'ms per step (median; bars: 10 %% to 90 %%)'\n"
                 "set logscale xy\nset grid xtics ytics lc rgb '#dddddd'\nset key left top Left reverse noenhanced\n"
                 "set border lc rgb '#444444'\n",
            path, shape_name ? shape_name : "?", kv ? kv : "?",
            (long long)json_integer_value(json_object_get(machine, "threads")),
            json_string_value(json_object_get(machine, "isa")) ? json_string_value(json_object_get(machine, "isa")) : "?",
            what);
    write_ticks(out, sweep);
    fputs("plot ", out);
    for (size_t i = 0; i < n; i++)
        fprintf(out, "%s$method%zu using 1:2:3:4 with yerrorlines lw 2 pt 7 ps 0.6 lc rgb '%s' title \"%s\"", i ? ", " : "", i,
                colours[i % (sizeof(colours) / sizeof(colours[0]))], names[i]);
    fputs("\n", out);
}

bool bench_plot(const json_t *figures, const char *path, char *error, size_t error_size)
{
    const json_t *const sweep = json_object_get(figures, "sweep");
    const char *names[MAX_LINES];
    if (collect_names(sweep, names) == 0) {
        snprintf(error, error_size, "the JSON has no \"sweep\" with methods to draw");
        return false;
    }
    if (strpbrk(path, "\"\\\n")) {
        snprintf(error, error_size, "the name of the picture has a character that gnuplot does not take");
        return false;
    }
    FILE *const gnuplot = popen("gnuplot", "w");
    if (!gnuplot) {
        snprintf(error, error_size, "gnuplot cannot be started");
        return false;
    }
    write_script(gnuplot, figures, sweep, path);
    const int status = pclose(gnuplot);
    if (status != 0)
        snprintf(error, error_size, "%s", WIFEXITED(status) && WEXITSTATUS(status) == 127
                                              ? "the picture needs gnuplot, which is not installed"
                                              : "gnuplot could not draw the picture");
    return status == 0;
}
