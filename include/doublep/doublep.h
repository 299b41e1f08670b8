/* doublep/doublep.h: the public interface of libdoublep, sparse attention for decoding long contexts on CPUs.
 *
 * The library keeps the keys and values of a sequence, clusters the keys while the sequence grows, and computes
 * attention over them: densely, or by Double-P (hierarchical top-p, arXiv 2602.05191), which estimates every cluster's
 * share of the softmax from its centroid and reads single tokens only where they matter.
 *
 * A decode step of one layer is two calls:
 *
 *     dp_append(sequence, layer, 1, k, 0, v, 0);         the new token's key (rotated) and value
 *     dp_decode(sequence, layer, 1, q, NULL, out, NULL, NULL);
 *
 * and a chunk of a prompt is
 *
 *     dp_append(sequence, layer, n, k, 0, v, 0);
 *     dp_prefill(sequence, layer, n, q, out, NULL);
 *
 * Threads. A runtime may be used from any number of threads at once. A sequence may be used by one thread at a time;
 * different sequences of one runtime may be used by different threads at the same time. Each call runs on an OpenMP
 * team of the calling thread, which dp_limit_threads bounds. Results have the same bits for any number of threads, for a
 * given ISA.
 *
 * Errors. Functions return DP_OK or a negative dp_status; dp_last_error() says in words what was wrong. After an error
 * every object is as it was before the call. The library never prints, aborts, installs signal handlers, or changes
 * floating-point modes or the affinity of the caller's thread. (One thing is out of its hands: where the system refuses
 * to start a thread, OpenMP runtimes end the process. n_threads must be within the process's limits.)
 *
 * fork(). In a child process the thread that called fork() computes alone, with the same results, in runtimes of the parent
 * as in new ones; threads that the child starts have teams. What other threads were doing at the time of the fork() is
 * undefined in the child: while they are inside the library, the child may only exec or _exit.
 *
 * NaN and Inf in queries, keys or values are not an error: they show as in dense attention. Where that has a number the
 * output is one, sparse or not, and elsewhere it is NaN or Inf: a step that meets one reads all rows of the KV head. So a
 * logit of -Inf masks a key; a query with no other has NaN as its output and -Inf as its log-sum-exp. Logits are f32: one
 * beyond its range is infinite, and +Inf makes the query's output NaN. Finite logits are safe, whatever their magnitude, where
 * sum_i |q_i k_i| (before the scale) is within f32's range; so are values whose magnitudes add up, over all tokens, within it.
 * With a softcap (see dp_sequence_config) infinite logits are the cap or its negative, as its formula says: then they mask
 * nothing.
 *
 * Structs that a caller fills start with struct_size; fill them with their *_init function first, then change fields.
 * From version 1.0 on fields are only ever added at the end, so that a program built against an older header keeps working. */
#ifndef DOUBLEP_DOUBLEP_H
#define DOUBLEP_DOUBLEP_H

#include <stddef.h>
#include <stdint.h>

#include "doublep/types.h"
#include "doublep/version.h"

#if defined(__GNUC__)
#define DP_API __attribute__((visibility("default")))
#else
#define DP_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dp_runtime dp_runtime;   /* threads, ISA, memory policy; shared by sequences */
typedef struct dp_sequence dp_sequence; /* keys, values and index of one sequence, all its layers */

/* ---- Version and errors ------------------------------------------------------------------------------------- */

/* Version of the library in use, DP_VERSION_NUMBER of its build: major * 10000 + minor * 100 + patch. */
DP_API unsigned dp_version(void);

/* A short constant description of a status code; never NULL. */
DP_API const char *dp_strerror(dp_status status);

/* What was wrong in the last call that failed on this runtime, in words: e.g. "dp_decode: epsilon is -1, must be in
 * [0, 1]". Empty when nothing has failed yet. With runtime = NULL: of dp_runtime_create in this thread. The text is
 * copied into buffer (at most size bytes, terminated); returns buffer. Where several threads fail at once, it is one
 * of their messages, whole. */
DP_API const char *dp_last_error(const dp_runtime *runtime, char *buffer, size_t size);

/* ---- Runtime ------------------------------------------------------------------------------------------------ */

typedef enum dp_pinning {
    DP_PIN_OFF = 0,     /* the OS places threads */
    DP_PIN_COMPACT = 1, /* thread i on the i-th core: neighbours share caches and a NUMA node */
    DP_PIN_SCATTER = 2  /* threads spread over packages and NUMA nodes as far apart as possible */
} dp_pinning;

typedef enum dp_huge_pages {
    DP_HUGE_PAGES_OFF = 0,        /* ordinary pages */
    DP_HUGE_PAGES_TRANSPARENT = 1 /* 2 MiB pages by madvise where the kernel gives them, silently ordinary ones else */
} dp_huge_pages;

typedef enum dp_numa {
    DP_NUMA_LOCAL = 0,     /* each KV head's memory is bound to one node, heads spread evenly over the nodes */
    DP_NUMA_INTERLEAVE = 1, /* pages of everything spread over all nodes */
    DP_NUMA_OFF = 2        /* no binding: first touch decides */
} dp_numa;

typedef struct dp_runtime_config {
    uint32_t struct_size;     /* set by dp_runtime_config_init */
    int32_t n_threads;        /* team size, 1 to 1024; 0 (default): one per core of the process's cpuset */
    dp_pinning pinning;       /* default DP_PIN_OFF. Otherwise the OpenMP workers that serve a calling thread are bound
                                 when they first work for the runtime, and get back what they had when they work for
                                 another, or when dp_runtime_free is called by the thread that they serve; the calling
                                 thread itself is never bound. */
    dp_isa isa;               /* default DP_ISA_AUTO */
    dp_huge_pages huge_pages; /* default DP_HUGE_PAGES_TRANSPARENT */
    dp_numa numa;             /* default DP_NUMA_LOCAL */
    uint64_t memory_limit;    /* bytes that the runtime's sequences and work buffers may take together; a call that would
                                 exceed it fails with DP_ERR_NO_MEMORY and leaves its object usable as it was. 0
                                 (default): what the system gives. A buffer that grows counts twice while it is moved.
                                 Small things are outside: the runtime itself (some 10 KiB), and what OpenMP, oneDNN and
                                 hwloc take (threads' stacks, generated code). */
} dp_runtime_config;

DP_API void dp_runtime_config_init(dp_runtime_config *config);

/* Creates a runtime; config = NULL means all defaults. The environment variable DOUBLEP_ISA (scalar, avx2, avx512,
 * neon) replaces DP_ISA_AUTO. *runtime is NULL after an error.
 * Errors: DP_ERR_INVALID (a field out of range, an unknown name in DOUBLEP_ISA), DP_ERR_UNSUPPORTED (this machine or
 * build lacks the ISA), DP_ERR_NO_MEMORY, DP_ERR_SYSTEM (topology discovery failed). */
DP_API dp_status dp_runtime_create(const dp_runtime_config *config, dp_runtime **runtime);

/* Frees a runtime; all its sequences must have been freed. NULL is allowed. */
DP_API void dp_runtime_free(dp_runtime *runtime);

typedef struct dp_runtime_info {
    uint32_t struct_size;
    dp_isa isa;               /* chosen */
    uint32_t isas_available;  /* bit (1 << dp_isa) for each ISA that this build has and this machine runs */
    uint32_t bf16_instructions; /* 1 where the chosen ISA uses BF16 instructions */
    int32_t n_threads;
    int32_t n_cores;          /* physical cores of the process's cpuset */
    int32_t n_pus;            /* hardware threads of the process's cpuset */
    int32_t n_numa_nodes;
    uint64_t l1d_bytes, l2_bytes, l3_bytes; /* of one cache each; 0 where there is none or it is unknown */
    uint64_t huge_page_bytes; /* 0 where transparent huge pages are off in the kernel or the config */
    uint64_t memory_limit;    /* as configured */
    uint64_t memory_bytes;    /* that count towards it at present: reserved_bytes (see dp_memory) of all sequences, what
                                 forks share once, and scratch_bytes */
    uint64_t memory_peak_bytes; /* most that it ever was */
    uint64_t scratch_bytes;   /* work buffers, kept for the next calls; idle ones are given up rather than fail a call */
} dp_runtime_info;

/* Fills info (call dp_runtime_info_init first). Errors: DP_ERR_INVALID. */
DP_API void dp_runtime_info_init(dp_runtime_info *info);
DP_API dp_status dp_runtime_get_info(const dp_runtime *runtime, dp_runtime_info *info);

/* Memory in bytes that this process can have: the machine's, or where a control group (v1 or v2; a container) that it is in
 * allows less, that. total: altogether, whoever has it; a limit for a runtime is a share of it. available: at present, with
 * what the system can give up (page cache). Either may be NULL. Errors: DP_ERR_INVALID (both are NULL), DP_ERR_SYSTEM (there is
 * no /proc). */
DP_API dp_status dp_system_memory(uint64_t *total, uint64_t *available);

/* From now on no call of the calling thread, on any runtime, runs on more than n_threads threads: for programs that read
 * prompts with another number of threads than they decode with, or share the machine. Less than 1 (at the start of a
 * thread): the runtime's number. Returns the limit that was in force, 0 where none was. (dp_runtime_free of a runtime with pinning
 * calls on as many as it has bound, to set them free.) */
DP_API int32_t dp_limit_threads(int32_t n_threads);

/* "scalar", "avx2", "avx512", "neon", "auto". */
DP_API const char *dp_isa_name(dp_isa isa);

/* ---- Sequence ----------------------------------------------------------------------------------------------- */

typedef enum dp_clustering {
    DP_CLUSTERING_L2 = 0,       /* k-means by squared distance */
    DP_CLUSTERING_SPHERICAL = 1 /* assignment by inner product with normalised centroids: the paper's form */
} dp_clustering;

typedef struct dp_sequence_config {
    uint32_t struct_size;
    uint32_t n_layers;      /* default 1; 1 to 4096 */
    uint32_t n_query_heads; /* default 1; 1 to 1024; a multiple of n_kv_heads. Query head h reads KV head
                               h / (n_query_heads / n_kv_heads) */
    uint32_t n_kv_heads;    /* default 1 */
    uint32_t key_dim;       /* elements of a key and a query: default 128; a multiple of 8, 8 to 512 */
    uint32_t value_dim;     /* elements of a value and an output: likewise */
    dp_type type;           /* how keys and values are kept; default DP_BF16; DP_INT8 takes half of its memory */
    float scale;            /* of the logits q.k; 0 (default): 1 / sqrt(key_dim) */
    uint32_t sink;          /* first tokens that are never clustered; default 4, at most 4096 */
    uint32_t window;        /* last tokens that are never clustered; default 64, at most 4096 */

    /* Index. The defaults are the ones that measured best. */
    uint32_t tokens_per_cluster;    /* default 24; 4 to 256; see cluster_growth */
    uint32_t segment_tokens;        /* a prompt is clustered in segments of so many tokens; default 8192, 64 to 65536; see
                                       cluster_growth */
    uint32_t pending_tokens;        /* decoded tokens are clustered when so many wait; default 1024, 64 to 65536 */
    uint32_t iterations;            /* of k-means; default 8, 1 to 64 */
    float outlier_share;            /* share of the clusters kept back for single tokens, those farthest from their
                                       centroid; default 0.125, 0 to 0.5; 0: none (the paper's form) */
    dp_clustering clustering;       /* default DP_CLUSTERING_L2 */
    float query_metric;             /* how far the queries seen (dp_prefill, dp_observe_queries) shape the distance between
                                       keys; default 0.5, 0 to 0.99; 0: plain distance (the paper's form) */
    float query_origin;             /* share of the mean query at which a cluster's statistics are taken; default 1, 0 to
                                       1; 0: plain means (the paper's form) */
    int32_t borrowed;               /* 0 (default): the sequence keeps the rows of keys and values; 1: the caller does, see
                                       dp_borrow */
    uint32_t key_codes;             /* 1 (default): clustered keys are kept in one bit and in four bits, too (with 24 tokens a
                                       cluster some 0.7 * key_dim + 1 bytes a token), so that refining a cluster reads these
                                       and the rows of the few tokens that may matter; 0: refining reads all rows of the cluster */
    float cluster_growth;           /* a segment that begins at token t > 32768 has tokens_per_cluster * (t / 32768)^this
                                       tokens a cluster, rounded down, at most 256, and is as many times longer (at most
                                       65536 tokens), so that a step's work grows slower than the context; default 0.6, 0
                                       to 1; 0: as many everywhere (the paper's form) */
    float softcap;                  /* soft cap c of the logits, finite: they are c * tanh(scale * q.k / c), not scale * q.k,
                                       everywhere, as in Gemma 2 (arXiv 2408.00118, c = 50 there); 0 (default): none */
} dp_sequence_config;

DP_API void dp_sequence_config_init(dp_sequence_config *config);

/* Sets the index of the paper's form in an initialised config: cluster_growth, outlier_share, query_metric, query_origin and
 * key_codes 0, DP_CLUSTERING_SPHERICAL; leaves the rest. */
DP_API void dp_sequence_config_set_paper(dp_sequence_config *config);

/* Creates an empty sequence. It keeps a pointer to runtime, which must outlive it. *sequence is NULL after an error.
 * Errors: DP_ERR_INVALID, DP_ERR_NO_MEMORY. */
DP_API dp_status dp_sequence_create(dp_runtime *runtime, const dp_sequence_config *config, dp_sequence **sequence);
DP_API void dp_sequence_free(dp_sequence *sequence); /* NULL is allowed */

/* Makes another sequence with the same tokens, index and settings: a prompt that several answers share, the branches of a
 * search. Clustered tokens and their index are shared, whoever clustered them, for as long as one of the sequences has
 * them; the sink and the tokens that wait (less than a segment, once an index was built pending_tokens, and the window)
 * are copied. From then on the two grow and are truncated each for itself, may be used by different threads at
 * the same time, and are freed in any order by any thread. Both give the same bits for the same calls.
 * *copy is NULL after an error. Errors: DP_ERR_INVALID (a NULL), DP_ERR_NO_MEMORY. */
DP_API dp_status dp_sequence_fork(const dp_sequence *sequence, dp_sequence **copy);

/* Tokens in a layer (0 for a layer out of range). Layers are independent: each has the tokens that were appended to it. */
DP_API uint64_t dp_sequence_tokens(const dp_sequence *sequence, uint32_t layer);

/* Makes a layer always dense in dp_decode, whatever its parameters say (dense = 1), or not (0, the default). The tokens
 * of a dense layer are not clustered; those that wait when it ceases to be dense are, by the next append.
 * Errors: DP_ERR_INVALID. */
DP_API dp_status dp_sequence_set_dense(dp_sequence *sequence, uint32_t layer, int dense);

/* Appends n_tokens keys and values to a layer: f32, token t of KV head h at k + t * k_stride + h * key_dim and
 * v + t * v_stride + h * value_dim (strides in floats; 0 means n_kv_heads * key_dim, n_kv_heads * value_dim). Keys are
 * stored as given: rotate them before. Values that the type cannot hold become Inf; with DP_INT8 an element is off by at
 * most half a step, 1 / 254 of the largest of its row, all of a row with an element that is not finite is NaN, and a logit is
 * finite as long as the sum over 127 |q_j| is.
 *
 * This is also where the index grows: before the new tokens are added, tokens that wait outside the window are
 * clustered, in whole segments (segment_tokens, cluster_growth) while appends are long (64 tokens or more: a prompt), and once
 * pending_tokens wait when they are short (decoding); pairs of KV heads take turns, so that no step bears all of it.
 * How a prompt is cut into appends of 64 tokens or more makes no difference to the results once the index is built.
 * An append never clusters its own tokens, nor the last `window` before. Where the clustered tokens end in a segment of less
 * than 16 clusters, it is clustered anew with the tokens that follow. Memory for tokens and index is allocated only
 * here, in dp_build_index, dp_sequence_reserve and dp_sequence_truncate.
 * Borrowed rows: k and v are NULL, the strides without meaning; the rows are in the caller's memory (dp_borrow) already.
 * Errors: DP_ERR_INVALID (n_tokens = 0, layer out of range, more than 2^32 - 1 tokens; borrowed rows: k or v, no room for
 * so many tokens, a block that is not of the pool), DP_ERR_NO_MEMORY. */
DP_API dp_status dp_append(dp_sequence *sequence, uint32_t layer, size_t n_tokens, const float *k, size_t k_stride,
                           const float *v, size_t v_stride);

/* The same from keys and values of any type, as an engine has them that computes in bf16, or the rows of another cache. Strides are
 * in bytes: token t of KV head h is the row at k + t * k_stride + h * R, R being the bytes of a row (see dp_type), and a stride of
 * 0 means n_kv_heads rows. Addresses and strides are multiples of the type's alignment. Rows of the sequence's own type are
 * stored as they are; others go through f32, with the result of dp_append on that. Errors: as dp_append. */
DP_API dp_status dp_append_typed(dp_sequence *sequence, uint32_t layer, size_t n_tokens, dp_type type, const void *k,
                                 size_t k_stride, const void *v, size_t v_stride);

/* Clusters all that waits outside the window, in one layer, or in all where layer is DP_ALL_LAYERS: at the end of a
 * prompt, so that the first decoded token is not late. Not needed for correctness. Only the last `window` tokens can be
 * queried from then on, and those that are appended later. Errors: as dp_append. */
#define DP_ALL_LAYERS UINT32_MAX
DP_API dp_status dp_build_index(dp_sequence *sequence, uint32_t layer);

/* Takes from the system, now, the memory of the segments that the next n_tokens of each layer will be clustered into while they are
 * decoded, in all layers that are not dense: to be called where a prompt ends and the length of the answer is known. Without it,
 * half of the time that growth takes goes by with the system finding and clearing pages (a virtual machine, 4,096 tokens after
 * 32K: 1.9 to 3.5 % of the time, 7 to 14 ms in a step of 4.5 at worst; with it 1.4 to 2.0 %, 2.6 to 9 ms). The memory counts towards
 * reserved_bytes (see dp_memory) and the runtime's limit from then on. The next segments of the sequence and its forks use it up; what
 * they leave is freed with the last of these. A second call makes it at least as much as that one asks for. Changes no result.
 * Errors: DP_ERR_INVALID (sequence is NULL, more than 2^32 - 1 tokens), DP_ERR_NO_MEMORY (the limit, or more than is available
 * in the sense of dp_system_memory; but for memory that could be had the sequence is as it was). */
DP_API dp_status dp_sequence_reserve(dp_sequence *sequence, size_t n_tokens);

/* Takes tokens back: leaves the first n_tokens of a layer, or of each layer where layer is DP_ALL_LAYERS; n_tokens is at
 * most what the layer has. For a draft that was refused, and for a prompt of which a beginning is kept. The sequence can be
 * used as if the later tokens had never come: it reads back, attends and grows accordingly. Only the clustering may
 * differ from that of a sequence that was never longer: clusters that reach into what is now the window are undone, at
 * most down to the beginning of a segment, and their tokens that stay are exact and wait, until they are clustered by
 * later appends (within the next pending_tokens) or by dp_build_index. Taking back tokens of the latest append undoes
 * no clusters and costs nothing. Memory of what was undone is used again, or goes back to the system.
 * Errors: DP_ERR_INVALID (layer out of range, a layer with fewer tokens), DP_ERR_NO_MEMORY (only where clusters are
 * undone). */
DP_API dp_status dp_sequence_truncate(dp_sequence *sequence, uint32_t layer, uint64_t n_tokens);

/* ---- Borrowed rows ----
 * For a cache that is there already: the caller keeps keys and values in memory of its own, of the sequence's type, and
 * the sequence (config.borrowed = 1) has nothing but the index over them. All calls are the same and give the same bits as
 * over rows of the sequence's own; only that the rows of a cluster lie scattered in memory.
 *
 * Rows are strided, or in blocks of a pool that a page table lists. The elements of a row follow each other; the row of
 * token t of KV head h is, in bytes, at
 *     k + t * k_token_stride + h * k_head_stride                                                           without a table
 *     k + block_table[t / block_tokens] * k_block_stride + t % block_tokens * k_token_stride + h * k_head_stride  with one
 * and likewise in v. So a cache of ggml is borrowed as it is, with nb[1] and nb[2] as strides (values not transposed: flash
 * attention on), and one of vLLM by its block table, in either order of heads and tokens in a block. A block may be in the
 * tables of any number of sequences.
 *
 * Ownership. The memory and the table stay the caller's; no call writes to them. dp_append, dp_build_index, dp_prefill,
 * dp_decode, dp_decode_batch and dp_sequence_read read them: during such a call they must be there, and nobody may change
 * the rows of the sequence's tokens nor the table, from any thread. No other call touches them: between calls memory may
 * move (call dp_borrow with the new place before the next of these calls), and the memory may be freed before the sequence.
 * Rows must be written before dp_append adds their tokens, and from then on stay as they are, or dp_rows_changed must be
 * told; entries of the table may change as long as each token keeps its row's contents (a block that is copied or swapped).
 *
 * A fork borrows the same memory through the same table until dp_borrow gives it another: it must before either of the two
 * appends, or both would write to one place; with a page table the blocks of the common tokens stay shared. Changed rows
 * are told to every sequence that borrows them. dp_sequence_truncate makes no difference to the caller's memory. */
typedef struct dp_borrowed_rows {
    uint32_t struct_size;
    uint32_t block_tokens;       /* tokens of a block, 1 or more, any number; 0 without a table */
    const void *k, *v;           /* rows of token 0, or of the pool's first token, of KV head 0; aligned to the type, as
                                    all strides are (DP_INT8: to 4 bytes, for the steps behind the rows) */
    size_t k_token_stride, v_token_stride; /* bytes; 0: n_kv_heads rows */
    size_t k_head_stride, v_head_stride;   /* bytes; 0: one row */
    size_t k_block_stride, v_block_stride; /* bytes; 0: block_tokens times the stride of a token; without a table 0 */
    const int32_t *block_table;  /* NULL: no table. Else the blocks of tokens 0 .. block_tokens - 1, and so on: at least
                                    as many as the sequence's tokens have */
    uint32_t n_blocks;           /* of the pool: entries are in [0, n_blocks); 0 without a table */
    uint64_t n_tokens;           /* that there is room for: dp_append does not go beyond */
} dp_borrowed_rows;

DP_API void dp_borrowed_rows_init(dp_borrowed_rows *rows);

/* Says where a layer's rows are: before its first tokens, and again whenever memory or table have moved or grown; the rows
 * of the tokens that the layer has must be the same in the new place. Copies the struct, not what it points to. Allocates
 * nothing, takes no lock; with a table it looks at the entries of the layer's tokens.
 * Errors: DP_ERR_INVALID (the sequence keeps its own rows, layer out of range, a NULL, strides below a row or not aligned,
 * room for less than the layer's tokens, a block that is not of the pool). */
DP_API dp_status dp_borrow(dp_sequence *sequence, uint32_t layer, const dp_borrowed_rows *rows);

/* Rows of tokens from .. to - 1 have changed, in one layer, or in all where layer is DP_ALL_LAYERS. Right at once: clusters
 * of the segments with such tokens (as many as a segment has there) are given up, and all tokens of these are read
 * exactly, until they are clustered anew: all by the next long append (a prompt's), or by dp_build_index; or one segment,
 * of one KV head, by each short append. Allocates nothing. The statistics of the queries stay.
 * Errors: DP_ERR_INVALID (the sequence keeps its own rows, layer out of range, from > to, a layer with fewer tokens). */
DP_API dp_status dp_rows_changed(dp_sequence *sequence, uint32_t layer, uint64_t from, uint64_t to);

/* The sequence's settings, those of fields that were 0 for a default as they were. Fills config (call
 * dp_sequence_config_init first). Errors: DP_ERR_INVALID. */
DP_API dp_status dp_sequence_get_config(const dp_sequence *sequence, dp_sequence_config *config);

/* Reads back tokens first .. first + n - 1 of one KV head as f32, in token order: k[n][key_dim], v[n][value_dim];
 * either may be NULL. Slow: for tests and tools. Errors: DP_ERR_INVALID. */
DP_API dp_status dp_sequence_read(const dp_sequence *sequence, uint32_t layer, uint32_t kv_head, uint64_t first,
                                  size_t n, float *k, float *v);

typedef struct dp_memory {
    uint32_t struct_size;
    uint64_t plain_bytes;    /* tokens * (key_dim + value_dim) * element size, over all layers and KV heads */
    uint64_t row_bytes;      /* keys and values; 0 where they are borrowed */
    uint64_t index_bytes;    /* centroids, mean values, sizes, dispersions, keys in four bits, token numbers */
    uint64_t reserved_bytes; /* all memory that the sequence holds, slack included: at most 1.30 times plain_bytes at 24
                                tokens per cluster (1.12 without key_codes) once an indexed 16-bit cache has 64 MiB or more,
                                with key_dim and value_dim of 64 or more */
    uint64_t clustered_tokens; /* per layer and KV head, summed */
    uint64_t clusters;         /* likewise */
    uint64_t shared_bytes;     /* of reserved_bytes: what forks of the sequence hold, too */
} dp_memory;

DP_API void dp_memory_init(dp_memory *memory);
DP_API dp_status dp_sequence_memory(const dp_sequence *sequence, dp_memory *memory); /* Errors: DP_ERR_INVALID */

/* ---- Snapshots ------------------------------------------------------------------------------------------------ */

/* A snapshot is a sequence in a file: tokens, index, what is known of the queries, settings. A prompt that was read once is
 * there at once the next time, in this process or another: the loaded sequence decodes and grows to the same bits as the
 * saved one (on the same ISA), and is forked, truncated and freed like any other.
 *
 * Format. Files of version DP_SNAPSHOT_VERSION are read by all builds of this library, on machines of the same byte order,
 * for any ISA, number of threads and NUMA nodes. A library reads the version that it writes; the version changes where the
 * format or what the index holds does. A file is about reserved_bytes (see dp_memory) long. All of it is covered by
 * checksums (CRC-32). It holds what was said, as readable as the keys and values are, and is as private as its permissions.
 *
 * Mapping. By default the clustered tokens and their index are not copied but mapped, privately: they are in place as soon
 * as the file's tables were read, the system fetches them from the page cache or the medium when they are used, processes
 * that load the same file share the memory, and the file is never written to. The mapped bytes count in full towards
 * memory_limit and in dp_memory, once for all forks of the loaded sequence: to have a prompt several times, load it once and
 * fork. Mapped memory is on ordinary pages, wherever the page cache has them. The file may be replaced (dp_sequence_save,
 * rename) or deleted while it is mapped, but not changed in place: one that is cut short under the mapping, or a medium that
 * fails, ends the process with SIGBUS, as it does for any mapped file. With map = 0 everything is read into memory of the
 * runtime's own kind (huge pages, NUMA), and the file is not needed afterwards. */
#define DP_SNAPSHOT_VERSION 4

/* Writes a snapshot to path. note: NULL or note_bytes bytes of the caller's that go into the file and come back with
 * dp_sequence_load: what the tokens were, and of which model, say. The file is written beside path, as path with a number
 * and ".tmp" appended, brought to the medium (fsync) and renamed: when the call returns DP_OK it is durable, and until
 * then, in a crash at any moment, path is what it was before. A crash may leave the file beside. An existing file (or
 * symbolic link) at path is replaced; a new one has the permissions that the umask allows.
 * The sequence is in use by the calling thread during the call; its forks need not rest. Several threads and processes may
 * save to and load from one path at the same time: a load finds one whole snapshot or another.
 * Errors: DP_ERR_INVALID (a NULL, an empty path, borrowed rows: there are none to save), DP_ERR_NO_MEMORY, DP_ERR_SYSTEM (a
 * file operation failed; nothing is left behind, except where all was done and only the folder's fsync failed: then the new
 * file is there, but might not survive a loss of power). */
DP_API dp_status dp_sequence_save(const dp_sequence *sequence, const char *path, const void *note, size_t note_bytes);

typedef struct dp_load_options {
    uint32_t struct_size;
    int32_t verify; /* 1 (default): reads the whole file and checks all of it, so that no file, damaged, hostile or made by
                       another program, can do worse than fail the call or make answers wrong. 0, for files that are
                       trusted: clustered tokens and their index are taken as they are, unread; the rest (header, tables,
                       note, waiting tokens, sink) is checked all the same, so that a cut file is noticed */
    int32_t map;    /* 1 (default) or 0: see above */
    const dp_sequence_config *config; /* NULL (default): any. Otherwise a sequence whose settings differ is refused */
    void *note;         /* NULL (default), or where the first note_size bytes of the note go */
    size_t note_size;
    size_t *note_bytes; /* NULL (default), or where the note's whole length goes; the three are written on success only,
                           except that an error of the very last step may leave part of the note in the buffer */
} dp_load_options;

DP_API void dp_load_options_init(dp_load_options *options);

/* Makes a sequence from a snapshot; options = NULL means all defaults. May be called from several threads at once.
 * *sequence is NULL after an error.
 * Errors: DP_ERR_INVALID (a NULL, an empty path, settings other than options->config: the message names the first),
 * DP_ERR_DAMAGED (the file is no snapshot, or is cut short, or some of it is not as it was written: the message says what),
 * DP_ERR_UNSUPPORTED (another format version, the other byte order, settings of another version of the library),
 * DP_ERR_NO_MEMORY, DP_ERR_SYSTEM (the file cannot be opened or read). */
DP_API dp_status dp_sequence_load(dp_runtime *runtime, const char *path, const dp_load_options *options,
                                  dp_sequence **sequence);

/* ---- Attention ---------------------------------------------------------------------------------------------- */

typedef enum dp_method { DP_DENSE = 0, DP_DOUBLE_P = 1 } dp_method;

typedef enum dp_refine {
    DP_REFINE_BUDGET = 0, /* spend token-level attention until the expected error is below epsilon */
    DP_REFINE_TOP_P = 1   /* on the smallest set of clusters that holds the share p2 of the mass: the paper's rule */
} dp_refine;

/* Selection, per query head, over clusters i of size s_i, centroid c_i, mean value v_i, dispersion u_i (mean over tokens
 * and dimensions of (k - c_i)^2), with d = key_dim:
 *   estimated log-mass   m_i = scale * q.c_i + log s_i + g(sigma_i),  sigma_i = scale * |q| * sqrt(u_i)
 * Where queries were seen, with their mean q0 and the metric M = (1 - query_metric) I + query_metric d E[qq'] / tr E[qq']:
 * the tokens of a cluster have weights a_t proportional to exp(scale * query_origin * q0.k_t), c_i and v_i are means with
 * these weights, s_i = exp(-sum_t a_t log a_t) the number of tokens that count, and m_i is exact at q = q0; keys are
 * clustered, outliers chosen and u_i taken in the distance of M; and sigma_i = scale * |q - q0|_(M^-1) * sqrt(u_i).
 *                        g(sigma) = sigma^2 / 2 up to sigma = L_i = sqrt(2 log s_i), beyond that L_i sigma - L_i^2 / 2
 *   total                T   = E + sum_i exp(m_i), E = sum of exp(logit) over the exact tokens: sink, window, pending
 *   stage 1 keeps the smallest set of clusters with E + mass >= p1 * T
 *   stage 2 refines, token by token, of that set:
 *     DP_REFINE_BUDGET: with the expected squared error of leaving a cluster approximated,
 *                         e_i = exp(2 m_i) min(exp(2 sigma_i^2) - 1, 100000 s_i),
 *                       clusters (those that stage 1 dropped, too) in order of the sum over the group's query heads of
 *                       e_i / (epsilon * T)^2 by cost, until that sum over the clusters that are left is at most one per
 *                       query head. With key_codes, of a refined cluster of several tokens those are looked for that have
 *                       more than l = 0.3 epsilon^2 of the mass for some query head of the group: not at all where that
 *                       takes more than 3.25 deviations of the cluster's logits and exp(m_i) is at most 3 l T; else by the
 *                       signs of k - c_i, or where it takes less than 2.5 deviations or exp(m_i) is more, by all four bits;
 *                       then those that may have it by their signs, by k or, where that is less to read, all of the
 *                       cluster by all four bits. Rows of those that have it are read;
 *                       the other tokens contribute their estimated mass * v_i. Without key_codes all rows are read
 *     DP_REFINE_TOP_P:  the smallest set with E + mass >= p2 * T
 *   the others of the set contribute exp(m_i) * v_i; clusters outside it are dropped.
 * Inside a cluster values go with keys, so that v_i should move with the query. It moves alike in all clusters of a segment
 * and does not average out; so a segment of 4096 tokens or more adds sum_i exp(m_i) * scale * C (q - q0), over its clusters
 * of more than one token that contribute by v_i, with C the mean over tokens of (v - v_i)(k - c_i)' (q0 = 0 without
 * queries).
 * With a softcap c and l_i = scale * q.c_i, c tanh(l_i / c) takes the place of scale * q.c_i in m_i, and sigma_i is multiplied
 * by its slope there, 1 - tanh^2(l_i / c), as is the cluster's part in the sum with C; m_i - log s_i is at most c; and the
 * weights a_t are those of the capped logits. m_i then is exact at q0 to the first order in the cluster's logits.
 * The query heads of a KV head share the union of their sets. Sources: arXiv 2602.05191 for the two stages. g is the
 * log of the mean of exp(deviation) of s_i logits that spread normally: the second cumulant, frozen where a sample of
 * that size has no larger deviations (Derrida's random energy model, Phys. Rev. B 24, 2613). Errors of different
 * clusters are independent and add in quadrature. */
typedef struct dp_attention_params {
    uint32_t struct_size;
    dp_method method;     /* default DP_DOUBLE_P */
    dp_refine refine;     /* default DP_REFINE_BUDGET */
    float p1;             /* default 0.95; 0 to 1 */
    float p2;             /* default 0.7; 0 to p1; DP_REFINE_TOP_P only */
    float epsilon;        /* default 0.07; 0 to 1; DP_REFINE_BUDGET only; 0 refines all that stage 1 keeps */
    uint32_t sink;        /* at least so many first tokens are exact; default 0: those of the sequence's config */
    uint32_t window;      /* at least so many last tokens are exact, for each query of the call; default 0: those of the
                             sequence's config */
    uint32_t min_context; /* below so many tokens dp_decode is dense; default 2048 */
    uint32_t min_clusters; /* stage 2 refines at least so many of the heaviest clusters per query head, as far as there
                              are so many of any estimated mass; default 0 */
    int32_t dispersion;   /* 1 (default) or 0: leave the dispersion out of m_i (the paper's form) */
    int32_t exact_mass;   /* 1 (default): E counts in T and in the targets; 0: top-p over the clusters alone (the
                             paper's form) */
    int32_t keep_dropped; /* 0 (default); 1: clusters outside the p1 set keep their estimated mass in the denominator */
    int32_t slope;        /* 1 (default) or 0: leave C out (the paper's form) */
} dp_attention_params;

DP_API void dp_attention_params_init(dp_attention_params *params);

/* The paper's exact form: (p1, p2) = (0.95, 0.7), DP_REFINE_TOP_P, dispersion = 0, exact_mass = 0, slope = 0, over an
 * index of dp_sequence_config_set_paper. */
DP_API void dp_attention_params_init_paper(dp_attention_params *params);

/* What a decode call did, summed over the KV heads; counted from the work lists that the kernels ran. */
typedef struct dp_attention_stats {
    uint32_t struct_size;
    int32_t sparse;             /* 1 where Double-P ran, 0 where the call was dense */
    uint64_t tokens;            /* in the cache */
    uint64_t tokens_exact;      /* read as exact tokens: sink, window, pending; all of them in a dense call */
    uint64_t clusters;          /* scored */
    uint64_t clusters_estimated; /* contributed by their mean value */
    uint64_t clusters_refined;  /* read token by token */
    uint64_t tokens_refined;    /* in those */
    double mass_exact;          /* share of the kept softmax mass that exact and refined tokens have, mean over query heads */
    double mass_estimated;      /* share that mean values have: 1 - mass_exact */
    uint64_t bytes_centroids;   /* read: centroids, sizes, dispersions */
    uint64_t bytes_means;       /* read: mean values */
    uint64_t bytes_rows;        /* read: keys and values */
    uint64_t bytes;             /* all that is read together */
    uint64_t bytes_dense;       /* keys and values that dense attention reads */
    uint64_t ns_score, ns_select, ns_gather, ns_merge; /* time in each stage, mean of the threads; the rest is waiting */
    uint64_t bytes_codes;       /* read to find the tokens to be refined: keys in one and in four bits and their steps, and
                                   keys that signs leave in doubt; part of bytes */
    uint64_t ns_scan;           /* time in that stage, between select and gather, likewise */
} dp_attention_stats;

DP_API void dp_attention_stats_init(dp_attention_stats *stats);

/* Dense causal attention of the last n_queries tokens, for a prompt: query i is token N - n_queries + i and sees the
 * tokens up to itself. q: f32 [n_queries][n_query_heads][key_dim]; out: f32 [n_queries][n_query_heads][value_dim];
 * lse: NULL or f32 [n_queries][n_query_heads], log of the sum of exp(logit), after the softcap if there is one. The queries' tokens must have come with
 * the latest dp_append, or not be clustered yet.
 * Errors: DP_ERR_INVALID, DP_ERR_NO_MEMORY. */
DP_API dp_status dp_prefill(dp_sequence *sequence, uint32_t layer, size_t n_queries, const float *q, float *out,
                            float *lse);

/* Tells a layer what its queries look like, where they do not all go through dp_prefill (which does this itself): a last
 * layer whose prompt queries are not needed, or a prompt that another engine reads. q: as in dp_prefill, any n_queries >= 1
 * queries; a sample of up to 64 of them is taken. Only statistics are kept: the mean and the second moments for each KV
 * head, key_dim * (key_dim + 1) floats. They count until the layer's first tokens are clustered; later calls change
 * nothing. The index is right without any, but then reads more for the same error: distances between keys and the
 * clusters' means know nothing of what will be asked. Errors: DP_ERR_INVALID, DP_ERR_NO_MEMORY. */
DP_API dp_status dp_observe_queries(dp_sequence *sequence, uint32_t layer, size_t n_queries, const float *q);

/* Attention of the last n_queries tokens while decoding, n_queries from 1 (one new token) to DP_MAX_DECODE_QUERIES (the
 * tokens of a draft to verify); shapes, causality and lse as in dp_prefill. All queries of a call share the rows that
 * are read. params = NULL means the defaults; stats may be NULL. Partial results over disjoint sets of tokens
 * are merged by their lse: out = sum_j exp(lse_j - L) out_j, L = log sum_j exp(lse_j).
 * Allocates nothing once a call of the size was made on the runtime (by as many threads at once, 64 at most) among the last
 * 1000, and takes no lock.
 * Errors: DP_ERR_INVALID, DP_ERR_NO_MEMORY. */
#define DP_MAX_DECODE_QUERIES 64
DP_API dp_status dp_decode(dp_sequence *sequence, uint32_t layer, size_t n_queries, const float *q,
                           const dp_attention_params *params, float *out, float *lse, dp_attention_stats *stats);

/* Decoding for several sequences at once, as a server does: one start of the team for all, its threads share the work of
 * all requests, whatever the lengths. Every request is a dp_decode with its own sequence, layer, queries and parameters,
 * and gives the same bits as alone. A sequence may occur more than once. */
typedef struct dp_decode_request {
    uint32_t struct_size;
    uint32_t layer;             /* default 0 */
    dp_sequence *sequence;      /* of the runtime of the call */
    size_t n_queries;           /* default 1 */
    const float *q;             /* this and the others as in dp_decode */
    const dp_attention_params *params; /* default NULL */
    float *out;
    float *lse;                 /* default NULL */
    dp_attention_stats *stats;  /* default NULL; the ns_* are those of the whole call */
} dp_decode_request;

DP_API void dp_decode_request_init(dp_decode_request *request);

/* Runs n_requests requests, an array of which each was initialised; n_requests = 0 does nothing. The sequences are in use
 * by the calling thread during the call. Either all requests are done or, after an error, none: nothing is written then,
 * and the message names the request ("dp_decode_batch: request 3: ..."). Allocates as dp_decode does.
 * Errors: DP_ERR_INVALID (as dp_decode, and a sequence of another runtime), DP_ERR_NO_MEMORY. */
DP_API dp_status dp_decode_batch(dp_runtime *runtime, size_t n_requests, const dp_decode_request *requests);

#ifdef __cplusplus
}
#endif

#endif
