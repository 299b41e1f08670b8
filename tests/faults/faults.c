#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <hwloc.h>
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_bool armed, good;
static atomic_long wanted, counted, failed;
static atomic_long mapped_bytes, files, descriptors, topologies, bitmaps;

/* The blocks that are held, each by its address: what others allocated and ours free, or the reverse, does not count. */
enum { MOST_BLOCKS = 1 << 16 };
static void *blocks[MOST_BLOCKS];
static long n_blocks;
static pthread_mutex_t blocks_lock = PTHREAD_MUTEX_INITIALIZER;

static void remember(void *p)
{
    pthread_mutex_lock(&blocks_lock);
    if (n_blocks < MOST_BLOCKS) blocks[n_blocks++] = p;
    pthread_mutex_unlock(&blocks_lock);
}

static void forget(const void *p)
{
    pthread_mutex_lock(&blocks_lock);
    long i = n_blocks - 1;
    while (i >= 0 && blocks[i] != p) i--;
    if (i >= 0) blocks[i] = blocks[--n_blocks];
    pthread_mutex_unlock(&blocks_lock);
}

void faults_arm(long n, bool for_good)
{
    wanted = n;
    good = for_good;
    counted = failed = 0;
    armed = true;
}

long faults_disarm(void)
{
    armed = false;
    return failed;
}

long faults_counted(void)
{
    return counted;
}

faults_held faults_held_now(void)
{
    return (faults_held){n_blocks, mapped_bytes, files, descriptors, topologies, bitmaps};
}

/* Counts a call; true where it is to fail. */
static bool fails(void)
{
    if (!armed) return false;
    const long n = atomic_fetch_add(&counted, 1) + 1, first = wanted;
    if (!first || n < first || (n > first && !good)) return false;
    failed++;
    errno = ENOMEM;
    return true;
}

/* A call that takes something: fails on demand, is noted otherwise. */
#define TAKES(type, none, name, parameters, arguments, note)                                                           \
    type __real_##name parameters;                                                                                     \
    type __wrap_##name parameters;                                                                                     \
    type __wrap_##name parameters                                                                                      \
    {                                                                                                                  \
        if (fails()) return none;                                                                                      \
        type result = __real_##name arguments;                                                                         \
        if (result != none) note;                                                                                      \
        return result;                                                                                                 \
    }

TAKES(void *, NULL, malloc, (size_t n), (n), remember(result))
TAKES(void *, NULL, calloc, (size_t n, size_t m), (n, m), remember(result))
TAKES(void *, NULL, realloc, (void *p, size_t n), (p, n), (forget(p), remember(result)))
TAKES(void *, NULL, aligned_alloc, (size_t a, size_t n), (a, n), remember(result))
TAKES(void *, MAP_FAILED, mmap, (void *a, size_t n, int p, int f, int d, off_t o), (a, n, p, f, d, o),
      mapped_bytes += (long)n)
TAKES(void *, MAP_FAILED, mmap64, (void *a, size_t n, int p, int f, int d, off_t o), (a, n, p, f, d, o),
      mapped_bytes += (long)n)
TAKES(FILE *, NULL, fopen, (const char *n, const char *m), (n, m), files++)
TAKES(FILE *, NULL, fopen64, (const char *n, const char *m), (n, m), files++)
TAKES(hwloc_bitmap_t, NULL, hwloc_bitmap_alloc, (void), (), bitmaps++)

/* A call that returns a status. */
#define DOES(type, error, name, parameters, arguments)                                                                 \
    type __real_##name parameters;                                                                                     \
    type __wrap_##name parameters;                                                                                     \
    type __wrap_##name parameters                                                                                      \
    {                                                                                                                  \
        return fails() ? error : __real_##name arguments;                                                              \
    }

DOES(size_t, 0, fread, (void *p, size_t n, size_t m, FILE *f), (p, n, m, f))
DOES(int, -1, madvise, (void *p, size_t n, int a), (p, n, a))
DOES(int, -1, hwloc_topology_load, (hwloc_topology_t t), (t))
DOES(int, -1, hwloc_get_cpubind, (hwloc_topology_t t, hwloc_bitmap_t b, int f), (t, b, f))
DOES(int, -1, hwloc_set_cpubind, (hwloc_topology_t t, hwloc_const_bitmap_t b, int f), (t, b, f))
DOES(int, -1, hwloc_topology_restrict, (hwloc_topology_t t, hwloc_const_bitmap_t b, unsigned long f), (t, b, f))
DOES(dnnl_status_t, dnnl_out_of_memory, dnnl_sgemm,
     (char a, char b, dnnl_dim_t m, dnnl_dim_t n, dnnl_dim_t k, float alpha, const float *x, dnnl_dim_t ldx,
      const float *y, dnnl_dim_t ldy, float beta, float *z, dnnl_dim_t ldz),
     (a, b, m, n, k, alpha, x, ldx, y, ldy, beta, z, ldz))

DOES(int, -1, fsync, (int d), (d))
DOES(int, -1, rename, (const char *from, const char *to), (from, to))
DOES(int, -1, fstat, (int d, struct stat *s), (d, s))
DOES(int, -1, fstat64, (int d, struct stat *s), (d, s))
DOES(int, -1, ftruncate, (int d, off_t n), (d, n))
DOES(int, -1, ftruncate64, (int d, off_t n), (d, n))

/* While armed, a file is read and written in parts. */
static size_t part(size_t n)
{
    enum { MOST = 20000 };
    return armed && n > MOST ? MOST : n;
}

DOES(ssize_t, -1, pread, (int d, void *p, size_t n, off_t o), (d, p, part(n), o))
DOES(ssize_t, -1, pread64, (int d, void *p, size_t n, off_t o), (d, p, part(n), o))
DOES(ssize_t, -1, pwrite, (int d, const void *p, size_t n, off_t o), (d, p, part(n), o))
DOES(ssize_t, -1, pwrite64, (int d, const void *p, size_t n, off_t o), (d, p, part(n), o))

/* The last argument is there where O_CREAT is, and does no harm where it is not. */
TAKES(int, -1, open, (const char *n, int f, mode_t m), (n, f, m), descriptors++)
TAKES(int, -1, open64, (const char *n, int f, mode_t m), (n, f, m), descriptors++)

/* One that fails has closed all the same. */
int __real_close(int d);
int __wrap_close(int d);
int __wrap_close(int d)
{
    descriptors--;
    const int result = __real_close(d);
    return fails() ? -1 : result;
}

int __real_hwloc_topology_init(hwloc_topology_t *t);
int __wrap_hwloc_topology_init(hwloc_topology_t *t);
int __wrap_hwloc_topology_init(hwloc_topology_t *t)
{
    if (fails() || __real_hwloc_topology_init(t)) return -1;
    topologies++;
    return 0;
}

/* Calls that give back. */
int __real_munmap(void *p, size_t n);
int __wrap_munmap(void *p, size_t n);
int __wrap_munmap(void *p, size_t n)
{
    mapped_bytes -= (long)n;
    return __real_munmap(p, n);
}

int __real_fclose(FILE *f);
int __wrap_fclose(FILE *f);
int __wrap_fclose(FILE *f)
{
    files--;
    return __real_fclose(f);
}

#define GIVES(name, parameter, note)                                                                                   \
    void __real_##name(parameter);                                                                                     \
    void __wrap_##name(parameter);                                                                                     \
    void __wrap_##name(parameter)                                                                                      \
    {                                                                                                                  \
        note;                                                                                                          \
        __real_##name(x);                                                                                              \
    }

GIVES(free, void *x, forget(x))
GIVES(hwloc_topology_destroy, hwloc_topology_t x, topologies--)
GIVES(hwloc_bitmap_free, hwloc_bitmap_t x, bitmaps -= x != NULL)
