/* eval_plot.c: an SVG file, drawn by gnuplot: KL against bytes, a curve per method over its settings, and, where a method
 * was measured with several epsilon, its relative error against that. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "eval_report.h"

enum { MAX_CURVES = 16, MAX_POINTS = 256 };

static const double least_kl = 1e-6; /* what a logarithmic axis shows of nothing */
static const char *const colours[] = {"#0060ad", "#c2410c", "#15803d", "#7e22ce", "#b45309", "#0e7490", "#be123c", "#444444"};

typedef struct point {
    double x, y;
} point;

static int by_x(const void *a, const void *b)
{
    const double x = ((const point *)a)->x, y = ((const point *)b)->x;
    return (x > y) - (x < y);
}

/* The settings of one method, by bytes. */
static size_t collect(const json_t *methods, const char *name, point *points)
{
    size_t n = 0, i;
    json_t *method;
    json_array_foreach(methods, i, method) {
        const double kl = json_number_value(json_object_get(method, "kl_mean"));
        const char *const other = json_string_value(json_object_get(method, "name"));
        if (n < MAX_POINTS && strcmp(other, name) == 0)
            points[n++] = (point){100 * json_number_value(json_object_get(method, "bytes_fraction")),
                                  kl > least_kl ? kl : least_kl};
    }
    qsort(points, n, sizeof(*points), by_x);
    return n;
}

/* Measured relative errors of one method by epsilon, where the error budget decides; a row for each epsilon. */
static size_t collect_errors(const json_t *methods, const char *name, point *points)
{
    size_t n = 0, i;
    json_t *method;
    json_array_foreach(methods, i, method) {
        const json_t *const params = json_object_get(method, "params");
        const char *const refine = json_string_value(json_object_get(params, "refine"));
        const double error = json_number_value(json_object_get(method, "rel_error_mean"));
        const point at = {json_number_value(json_object_get(params, "epsilon")), error};
        bool wanted = n < MAX_POINTS && strcmp(json_string_value(json_object_get(method, "name")), name) == 0 && refine &&
                      strcmp(refine, "budget") == 0 && at.x > 0 && error > 0;
        for (size_t j = 0; j < n; j++)
            wanted &= points[j].x != at.x;
        if (wanted)
            points[n++] = at;
    }
    qsort(points, n, sizeof(*points), by_x);
    return n;
}

static size_t collect_names(const json_t *methods, const char **names)
{
    size_t n = 0, i;
    json_t *method;
    json_array_foreach(methods, i, method) {
        const char *const name = json_string_value(json_object_get(method, "name"));
        bool known = strcmp(name, "dense") == 0 || n == MAX_CURVES; /* dense attention's KL is zero by definition */
        for (size_t j = 0; j < n; j++)
            known |= strcmp(names[j], name) == 0;
        if (!known)
            names[n++] = name;
    }
    return n;
}

static void write_points(FILE *out, const char *kind, size_t number, const point *points, size_t n)
{
    fprintf(out, "$%s%zu << END\n", kind, number);
    for (size_t j = 0; j < n; j++)
        fprintf(out, "%.9g %.9g\n", points[j].x, points[j].y);
    fputs("END\n", out);
}

static void plot_curve(FILE *out, bool first, const char *kind, size_t number, const char *name)
{
    fprintf(out, "%s$%s%zu with linespoints lw 2 pt 7 ps 0.6 lc rgb '%s' title '%s'", first ? "plot " : ", ", kind, number,
            colours[number % (sizeof(colours) / sizeof(colours[0]))], name);
}

static void write_script(FILE *out, const json_t *methods, const char *path, const char *const *names, size_t n_names)
{
    point points[MAX_POINTS];
    size_t n_errors[MAX_CURVES], budgets = 0;
    for (size_t i = 0; i < n_names; i++) {
        write_points(out, "method", i, points, collect(methods, names[i], points));
        n_errors[i] = collect_errors(methods, names[i], points);
        budgets += n_errors[i] > 1;
        write_points(out, "error", i, points, n_errors[i]);
    }
    fprintf(out, "set terminal svg size 820,%d font 'sans-serif,13' background '#ffffff'\nset output \"",
            budgets ? 1000 : 560);
    for (const char *c = path; *c; c++)
        fprintf(out, *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
    fputs("\"\n", out);
    if (budgets)
        fputs("set multiplot layout 2,1\n", out);
    fputs("set logscale xy\nset format x '%g %%'\nset format y '%.0e'\n"
          "set xlabel 'bytes read, share of dense attention'\n"
          "set ylabel 'mean KL to dense attention at the answer positions'\n"
          "set grid\nset key outside right\n", out);
    for (size_t i = 0; i < n_names; i++)
        plot_curve(out, i == 0, "method", i, names[i]);
    fputc('\n', out);
    if (!budgets)
        return;
    fputs("set format xy '%g'\nset xlabel 'epsilon, the error that is asked for'\n"
          "set ylabel 'relative error that is measured'\n", out);
    bool first = true;
    for (size_t i = 0; i < n_names; i++) {
        if (n_errors[i] < 2)
            continue;
        plot_curve(out, first, "error", i, names[i]);
        first = false;
    }
    fputs(", x with lines dt 2 lc rgb '#888888' title 'equal'\nunset multiplot\n", out);
}

bool eval_report_svg(const json_t *figures, const char *path, char *error, size_t error_size)
{
    const json_t *const methods = json_object_get(figures, "methods");
    const char *names[MAX_CURVES];
    const size_t n_names = collect_names(methods, names);
    if (n_names == 0) {
        snprintf(error, error_size, "%s: a picture needs a method besides dense", path);
        return false;
    }
    if (system("command -v gnuplot >/dev/null 2>&1") != 0) {
        snprintf(error, error_size, "%s: gnuplot is needed for pictures; on Debian: apt install gnuplot-nox", path);
        return false;
    }
    FILE *const out = popen("gnuplot", "w");
    if (!out) {
        snprintf(error, error_size, "gnuplot: %s", strerror(errno));
        return false;
    }
    write_script(out, methods, path, names, n_names);
    const int status = pclose(out);
    if (status == 0)
        return true;
    snprintf(error, error_size, "%s: gnuplot failed with status %d", path, WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    return false;
}
