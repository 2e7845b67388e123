/* One pass of a model of the Llama family over a few symbols, with nothing between the products.

   Every column (a symbol of some row) is summed in the same order, whatever stands beside it: a symbol that
   is scored behind a draft, or in a batch, has the very bits that it has when it is decoded alone. Weights
   are float32, or bfloat16 where that loses nothing; all arithmetic is float32. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
#define STRIP 16
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4)));
#define INLINE static inline __attribute__((always_inline))
#define BIGGER(a, b) ((a) > (b) ? (a) : (b))

typedef struct {
  const void *data; /* [rows, width]; width is a multiple of 2 LANES */
  int64_t rows, width;
  int32_t half; /* bfloat16 */
} Matrix;

typedef struct {
  const float *input_norm, *post_norm, *q_norm, *k_norm; /* the last two may be missing */
  Matrix qkv, out, gate_up, down;
  int32_t attends, thinks; /* a draft may leave one of them out */
} Layer;

typedef struct {
  int64_t layers, hidden, heads, kv_heads, head_dim, inner, vocab;
  float eps;
  const Layer *layer;
  const float *norm;
  Matrix embedding, head;
} Model;

/* Of each column: its id, the row of the cache, the place where its key goes, and how many entries it may
   see (all of them where it has a mask). */
typedef struct {
  const int64_t *ids, *rows, *places, *counts;
  const float *cos, *sin; /* [n, head_dim] */
} Columns;

/* For each layer keys and values [rows, kv_heads, room, head_dim], and masks [n, end] or NULL. */
typedef struct {
  float *const *keys, *const *values;
  int64_t room;
  const float *const *masks;
  int64_t end;
} Cache;

/* Entries k to k + LANES of a row. Of bfloat16 two such groups share their words, one in the upper halves and
   one in the lower, so that neither has to be put in order. */
INLINE lanes weights(const char *row, int64_t k, int half) {
  if (!half) return *(const lanes *)(row + 4 * k);
  words both = *(const words *)(row + 2 * (k / (2 * LANES) * (2 * LANES)));
  return (lanes)(k % (2 * LANES) ? both & 0xffff0000u : both << 16);
}

typedef int32_t whole __attribute__((vector_size(4 * LANES)));
INLINE lanes chosen(whole where, lanes a, lanes b) { return (lanes)((where & (whole)a) | (~where & (whole)b)); }

/* exp by 2^n times a polynomial of the rest (its Taylor series on half an octave): within two roundings. */
INLINE lanes exponential(lanes x) {
  x = chosen(x > 88.0f, (lanes){0} + 88.0f, x);
  x = chosen(x < -87.0f, (lanes){0} - 87.0f, x);
  lanes n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* the nearest whole number */
  lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  lanes y = 1.0f + r * (1.0f + r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
  whole bits = (__builtin_convertvector(n, whole) + 127) << 23;
  return y * (lanes)bits;
}

INLINE float total(lanes x) { return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7])); }

/* Rows of a matrix times C columns: one accumulator for each, from the first entry to the last. They are
   written out one by one, since compilers keep what is in an array in memory. */
#define START(c) lanes a##c = {0}, b##c = {0};
#define STEP(c)                                    \
  {                                                \
    lanes v = *(const lanes *)(x + c * width + k); \
    a##c += w * v, b##c += u * v;                  \
  }
#define STORE(c) y[c * pitch] = total(a##c), y[c * pitch + 1] = total(b##c);
#define TWO_ROWS(name, COLUMNS)                                                                            \
  INLINE void name(const char *rows, int64_t width, int half, const float *x, float *y, int64_t pitch) {   \
    COLUMNS(START)                                                                                         \
    const char *next = rows + width * (half ? 2 : 4);                                                      \
    for (int64_t at = 0; at < width; at += 2 * LANES) {                                                    \
      int64_t k = at;                                                                                      \
      lanes w = weights(rows, k, half), u = weights(next, k, half);                                        \
      COLUMNS(STEP)                                                                                        \
      k += LANES;                                                                                          \
      w = weights(rows, at + LANES, half), u = weights(next, at + LANES, half);                            \
      COLUMNS(STEP)                                                                                        \
    }                                                                                                      \
    COLUMNS(STORE)                                                                                         \
  }
#define COLUMNS_1(DO) DO(0)
#define COLUMNS_2(DO) COLUMNS_1(DO) DO(1)
#define COLUMNS_3(DO) COLUMNS_2(DO) DO(2)
#define COLUMNS_4(DO) COLUMNS_3(DO) DO(3)
#define COLUMNS_5(DO) COLUMNS_4(DO) DO(4)
#define COLUMNS_6(DO) COLUMNS_5(DO) DO(5)
TWO_ROWS(times_2, COLUMNS_2)
TWO_ROWS(times_3, COLUMNS_3)
TWO_ROWS(times_4, COLUMNS_4)
TWO_ROWS(times_5, COLUMNS_5)
TWO_ROWS(times_6, COLUMNS_6)

/* Four rows times one column: more sums at once than two rows have, in the same order. */
INLINE void four_rows(const char *rows, int64_t width, int half, const float *x, float *y) {
  int64_t wide = width * (half ? 2 : 4);
  lanes a = {0}, b = {0}, c = {0}, d = {0};
#pragma GCC unroll 2
  for (int64_t k = 0; k < width; k += LANES) {
    lanes v = *(const lanes *)(x + k);
    a += weights(rows, k, half) * v, b += weights(rows + wide, k, half) * v;
    c += weights(rows + 2 * wide, k, half) * v, d += weights(rows + 3 * wide, k, half) * v;
  }
  y[0] = total(a), y[1] = total(b), y[2] = total(c), y[3] = total(d);
}

INLINE float one_row(const char *row, int64_t width, int half, const float *x) {
  lanes sum = {0};
  for (int64_t k = 0; k < width; k += LANES) sum += weights(row, k, half) * *(const lanes *)(x + k);
  return total(sum);
}

/* Some rows (a multiple of 4) times all columns, in blocks that fit into sixteen registers: few columns, and then
   all rows, so that both stay in the nearest cache. */
INLINE void strip(const char *rows, int count, int64_t width, int half, const float *x, float *y, int64_t pitch, int n) {
  int64_t wide = width * (half ? 2 : 4);
  while (n > 0) {
    int now = n <= 6 ? n : n <= 8 ? 4 : n <= 10 ? 5 : 6;
    for (int r = 0; r < count; r += now == 1 ? 4 : 2) {
      const char *at = rows + r * wide;
      switch (now) {
        case 1: four_rows(at, width, half, x, y + r); break;
        case 2: times_2(at, width, half, x, y + r, pitch); break;
        case 3: times_3(at, width, half, x, y + r, pitch); break;
        case 4: times_4(at, width, half, x, y + r, pitch); break;
        case 5: times_5(at, width, half, x, y + r, pitch); break;
        default: times_6(at, width, half, x, y + r, pitch);
      }
    }
    x += now * width, y += now * pitch, n -= now;
  }
}

/* y[c, o] = sum_k W[o, k] x[c, k] for n columns; y has `pitch` floats for a column. */
static void product(const Matrix *m, const float *x, float *y, int64_t pitch, int n, int threads) {
  int64_t whole = m->rows / STRIP, wide = m->width * (m->half ? 2 : 4);
  int many = m->rows * m->width * (int64_t)n > 200000 ? threads : 1; /* a team of threads has its price */
  const char *data = m->data;
#pragma omp parallel for num_threads(many) schedule(static) if (many > 1)
  for (int64_t b = 0; b < whole; b++) {
    if (m->half)
      strip(data + STRIP * b * wide, STRIP, m->width, 1, x, y + STRIP * b, pitch, n);
    else
      strip(data + STRIP * b * wide, STRIP, m->width, 0, x, y + STRIP * b, pitch, n);
  }
  for (int64_t o = STRIP * whole; o < m->rows; o++)
    for (int c = 0; c < n; c++) y[c * pitch + o] = one_row(data + o * wide, m->width, m->half, x + c * m->width);
}

static void rms(const float *x, const float *weight, float *y, int64_t size, float eps) {
  lanes sum = {0};
  for (int64_t i = 0; i < size; i += LANES) sum += *(const lanes *)(x + i) * *(const lanes *)(x + i);
  float scale = 1.0f / sqrtf(total(sum) / size + eps);
  for (int64_t i = 0; i < size; i++) y[i] = x[i] * scale * weight[i];
}

/* The halves of a head, turned; the sign of the second table is folded into its first half. */
static void rotate(float *x, const float *cos, const float *sin, int64_t d) {
  int64_t half = d / 2;
  for (int64_t i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    x[i] = a * cos[i] + b * sin[i];
    x[i + half] = b * cos[i + half] + a * sin[i + half];
  }
}

/* One query over `count` entries; those whose mask is below 0 are not there. */
static void attend(const float *q, const float *keys, const float *values, const float *mask, int64_t count, int64_t d,
                   float *scores, float *y) {
  float scale = 1.0f / sqrtf((float)d), top = -INFINITY, sum = 0;
  for (int64_t s = 0; s < count; s++) {
    if (mask && mask[s] < 0) continue;
    lanes dot = {0};
    for (int64_t i = 0; i < d; i += LANES) dot += *(const lanes *)(q + i) * *(const lanes *)(keys + s * d + i);
    scores[s] = total(dot) * scale;
    top = BIGGER(top, scores[s]);
  }
  memset(y, 0, sizeof(float) * d);
  for (int64_t s = 0; s < count; s++) {
    if (mask && mask[s] < 0) continue;
    float p = expf(scores[s] - top);
    sum += p;
    for (int64_t i = 0; i < d; i += LANES) *(lanes *)(y + i) += p * *(const lanes *)(values + s * d + i);
  }
  for (int64_t i = 0; i < d; i++) y[i] /= sum;
}

static void embed(const Matrix *table, int64_t id, float *y) {
  const char *row = (const char *)table->data + id * table->width * (table->half ? 2 : 4);
  for (int64_t k = 0; k < table->width; k += LANES) *(lanes *)(y + k) = weights(row, k, table->half);
}

/* Queries and keys of one layer turned, keys and values put into the cache. */
static void remember(const Model *m, const Layer *layer, const Columns *on, int n, const Cache *cache, int64_t l,
                     float *qkv) {
  int64_t d = m->head_dim, H = m->heads, K = m->kv_heads;
  for (int c = 0; c < n; c++) {
    float *one = qkv + c * (H + 2 * K) * d;
    for (int64_t a = 0; a < H + K; a++) {
      if (layer->q_norm) rms(one + a * d, a < H ? layer->q_norm : layer->k_norm, one + a * d, d, m->eps);
      rotate(one + a * d, on->cos + c * d, on->sin + c * d, d);
    }
    for (int64_t a = 0; a < K; a++) {
      int64_t at = ((on->rows[c] * K + a) * cache->room + on->places[c]) * d;
      memcpy(cache->keys[l] + at, one + (H + a) * d, sizeof(float) * d);
      memcpy(cache->values[l] + at, one + (H + K + a) * d, sizeof(float) * d);
    }
  }
}

static void mix(const Model *m, const Columns *on, int n, const Cache *cache, int64_t l, const float *qkv, float *scores,
                float *mixed, int threads) {
  int64_t d = m->head_dim, H = m->heads, K = m->kv_heads, jobs = n * H;
  const float *mask = cache->masks ? cache->masks[l] : 0;
  int many = jobs * cache->end * d > 200000 ? threads : 1;
#pragma omp parallel for num_threads(many) schedule(static) if (many > 1)
  for (int64_t j = 0; j < jobs; j++) {
    int64_t c = j / H, a = j % H, at = (on->rows[c] * K + a / (H / K)) * cache->room * d;
    attend(qkv + (c * (H + 2 * K) + a) * d, cache->keys[l] + at, cache->values[l] + at,
           mask ? mask + c * cache->end : 0, mask ? cache->end : on->counts[c], d, scores + j * cache->end,
           mixed + j * d);
  }
}

/* silu(gate) up, where both stand side by side. */
static void activate(const float *gate, float *y, int64_t size) {
  for (int64_t i = 0; i < size; i += LANES) {
    lanes g = *(const lanes *)(gate + i), up = *(const lanes *)(gate + size + i);
    *(lanes *)(y + i) = g / (1.0f + exponential(-g)) * up;
  }
}

/* Floats that `forward` needs beside its result. */
int64_t room_for(const Model *m, int64_t n, int64_t end) {
  int64_t heads = m->heads * m->head_dim, widest = BIGGER(BIGGER(m->hidden, m->inner), heads);
  return n * (m->hidden + 2 * widest + (m->heads + 2 * m->kv_heads) * m->head_dim + 2 * m->inner + m->heads * end);
}

/* Logits [n, vocab] of n columns; their keys and values are in the cache afterwards. What is outside of tables
   is refused before anything is read: 1 for an id, 2 for a place in the cache, else 0. */
int forward(const Model *m, const Columns *on, int n, const Cache *cache, float *scratch, float *logits, int threads) {
  int64_t D = m->hidden, I = m->inner, wide = (m->heads + 2 * m->kv_heads) * m->head_dim;
  int64_t widest = BIGGER(BIGGER(D, I), m->heads * m->head_dim);
  float *h = scratch, *x = h + n * D, *mixed = x + n * widest, *qkv = mixed + n * widest;
  float *gate = qkv + n * wide, *scores = gate + n * 2 * I;
  for (int c = 0; c < n; c++) {
    if (on->ids[c] < 0 || on->ids[c] >= m->embedding.rows) return 1;
    if (on->places[c] < 0 || on->places[c] >= cache->room || cache->end > cache->room) return 2;
  }
  for (int c = 0; c < n; c++) embed(&m->embedding, on->ids[c], h + c * D);
  for (int64_t l = 0; l < m->layers; l++) {
    const Layer *layer = &m->layer[l];
    if (layer->attends) {
      for (int c = 0; c < n; c++) rms(h + c * D, layer->input_norm, x + c * D, D, m->eps);
      product(&layer->qkv, x, qkv, wide, n, threads);
      remember(m, layer, on, n, cache, l, qkv);
      mix(m, on, n, cache, l, qkv, scores, mixed, threads);
      product(&layer->out, mixed, x, D, n, threads);
      for (int64_t i = 0; i < n * D; i++) h[i] += x[i];
    }
    if (layer->thinks) {
      for (int c = 0; c < n; c++) rms(h + c * D, layer->post_norm, x + c * D, D, m->eps);
      product(&layer->gate_up, x, gate, 2 * I, n, threads);
      for (int c = 0; c < n; c++) activate(gate + c * 2 * I, x + c * I, I);
      product(&layer->down, x, mixed, D, n, threads);
      for (int64_t i = 0; i < n * D; i++) h[i] += mixed[i];
    }
  }
  for (int c = 0; c < n; c++) rms(h + c * D, m->norm, x + c * D, D, m->eps);
  product(&m->head, x, logits, m->vocab, n, threads);
  return 0;
}
