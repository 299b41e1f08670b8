/* eval_plot.c: KL against bytes as an SVG file, drawn by gnuplot. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "eval_report.h"

enum { MAX_CURVES = 16, MAX_POINTS = 256 };

static const double least_kl = 1e-6; /* what a logarithmic axis shows of nothing */
static const char *const colours[] = {"#0060ad", "#c2410c", "#15803d", "#7e22ce", "#b45309", "#0e7490", "#be123c", "#444444"};

typedef struct point {
    double bytes, kl;
} point;

static int by_bytes(const void *a, const void *b)
{
    const double x = ((const point *)a)->bytes, y = ((const point *)b)->bytes;
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
    qsort(points, n, sizeof(*points), by_bytes);
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

static void write_script(FILE *out, const json_t *methods, const char *path, const char *const *names, size_t n_names)
{
    point points[MAX_POINTS];
    fprintf(out, "set terminal svg size 820,560 font 'sans-serif,13' background '#ffffff'\nset output \"");
    for (const char *c = path; *c; c++)
        fprintf(out, *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
    fputs("\"\nset logscale xy\nset format x '%g %%'\nset format y '%.0e'\n"
          "set xlabel 'bytes read, share of dense attention'\n"
          "set ylabel 'mean KL to dense attention at the answer positions'\n"
          "set grid\nset key outside right\n", out);
    for (size_t i = 0; i < n_names; i++) {
        const size_t n = collect(methods, names[i], points);
        fprintf(out, "$method%zu << END\n", i);
        for (size_t j = 0; j < n; j++)
            fprintf(out, "%.9g %.9g\n", points[j].bytes, points[j].kl);
        fputs("END\n", out);
    }
    for (size_t i = 0; i < n_names; i++)
        fprintf(out, "%s$method%zu with linespoints lw 2 pt 7 ps 0.6 lc rgb '%s' title '%s'", i ? ", " : "plot ", i,
                colours[i % (sizeof(colours) / sizeof(colours[0]))], names[i]);
    fputc('\n', out);
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
