/* bench_stats.c: numbers about numbers. */
#include "bench.h"

#include <math.h>
#include <stdlib.h>

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Between the two nearest of n sorted values. */
static double quantile(const double *sorted, size_t n, double share)
{
    const double place = share * (double)(n - 1);
    const size_t below = (size_t)place, above = below + 1 < n ? below + 1 : below;
    return sorted[below] + (place - (double)below) * (sorted[above] - sorted[below]);
}

bench_spread bench_spread_of(double *values, size_t n)
{
    if (n == 0)
        return (bench_spread){0};
    qsort(values, n, sizeof(values[0]), compare_doubles);
    return (bench_spread){quantile(values, n, 0.1), quantile(values, n, 0.5), quantile(values, n, 0.9)};
}

double bench_gather_gbps(const bench_machine *machine, double run_bytes)
{
    const double place = log2(fmax(run_bytes, 1) / (double)bench_run_bytes(0)) / 2;
    const double *const gbps = machine->gather_gbps;
    if (place <= 0)
        return gbps[0];
    if (place >= BENCH_RUN_LENGTHS - 1)
        return gbps[BENCH_RUN_LENGTHS - 1];
    const size_t below = (size_t)place;
    return gbps[below] + (place - (double)below) * (gbps[below + 1] - gbps[below]);
}
