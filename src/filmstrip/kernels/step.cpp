// One step of decoding on a CPU: one new token for each of up to 8 rows, all layers of a LLaMA and its output head.
//
// It computes what `models.decoder.Decoder` does (its twin, and the place to read first), in one call: a step reads
// every weight once and does little with it, so what counts is that memory is read at full speed, by all cores, and
// that nothing waits in between. Activations and sums are float32; weights may be stored in fewer bits.
//
// Plain C interface, no headers of PyTorch: `kernels.library` compiles it where it is used and calls it by pointers.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>

#include "products.h"

struct Layer {
  const float* attention_norm;
  Matrix q, k, v, o;
  const float* mlp_norm;
  Matrix gate, up, down;
};

// Shapes as in `models.decoder`: x (B, D), cos and sin (B, H), keys and values (L, B, K, capacity, H), keep (B, length
// + 1) or null, logits (B, W). `scratch` has `filmstrip_scratch` floats. Keys and values are of kind `kv`, a float.
struct Step {
  const Layer* layers;
  const float* final_norm;
  Matrix head;
  float* x;
  const float* cos;
  const float* sin;
  void* keys;
  void* values;
  const uint8_t* keep;
  float* logits;
  float* scratch;
  int64_t num_layers, batch, width, heads, kv_heads, head_dim, inner, capacity, length;
  float eps;
  int32_t threads, kv;
};

namespace {

void normalise(const float* x, const float* weight, int64_t batch, int64_t width, float eps, float* out) {
  for (int64_t b = 0; b < batch; b++) {
    const float* row = x + b * width;
    double squares = 0;
    for (int64_t i = 0; i < width; i++) squares += double(row[i]) * row[i];
    const float scale = 1.0f / std::sqrt(float(squares / width) + eps);
    for (int64_t i = 0; i < width; i++) out[b * width + i] = weight[i] * (row[i] * scale);
  }
}

// e^x for x <= 0: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]; within 2 units in the last place. 0 below -87.
inline Vector exponential(Vector x) {
  const Vector least = Vector{} - 87.0f;
  const Vector bounded = x > least ? x : least;
  const Ints n = __builtin_convertvector(bounded * 1.44269504f - 0.5f, Ints);  // towards zero is to the nearest here
  const Vector whole = __builtin_convertvector(n, Vector);
  const Vector r = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
  Vector p = Vector{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Vector power = (Vector)((n + 127) << 23);
  return x != x ? x : (x > least ? p * power : Vector{});  // what is not a number stays so
}

void rotate(float* head, const float* cos, const float* sin, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; i++) {
    const float first = head[i], second = head[i + half];
    head[i] = first * cos[i] - second * sin[i];
    head[i + half] = second * cos[i + half] + first * sin[i + half];
  }
}

template <typename Stored>
float dot(const float* a, const Stored* b, int64_t count) {
  Vector total = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) total += load(a + i) * load(b + i);
  float rest = sum(total);
  for (; i < count; i++) rest += a[i] * as_float(b[i]);
  return rest;
}

// One query over `slots` keys and values; `weights` has room for them, rounded up to LANES.
template <typename Stored>
void attend(const float* query, const Stored* keys, const Stored* values, const uint8_t* keep, int64_t slots,
            int64_t head_dim, float* weights, float* out) {
  const float scale = 1.0f / std::sqrt(float(head_dim));
  float most = -INFINITY;
  for (int64_t s = 0; s < slots; s++) {
    weights[s] = keep && !keep[s] ? -INFINITY : dot(query, keys + s * head_dim, head_dim) * scale;
    if (weights[s] > most) most = weights[s];
  }
  int64_t padded = slots;
  while (padded % LANES) weights[padded++] = -INFINITY;
  Vector total = {};
  for (int64_t s = 0; s < padded; s += LANES) {
    const Vector e = exponential(load(weights + s) - most);
    store(weights + s, e);
    total += e;
  }
  const float share = 1.0f / sum(total);
  std::memset(out, 0, head_dim * sizeof(float));
  for (int64_t s = 0; s < slots; s++) {
    if (keep && !keep[s]) continue;
    const float weight = weights[s] * share;
    const Stored* value = values + s * head_dim;
    int64_t i = 0;
    for (; i + LANES <= head_dim; i += LANES) store(out + i, load(out + i) + load(value + i) * weight);
    for (; i < head_dim; i++) out[i] += as_float(value[i]) * weight;
  }
}

// Rotation, the new slot of the cache, and attention, for every row and key/value head.
template <typename Stored>
void attention(const Step& s, int64_t layer, float* q, float* k, const float* v, float* weights, float* out) {
  const int64_t H = s.head_dim, queries = s.heads / s.kv_heads, slots = s.length + 1;
  Stored *keys = (Stored*)s.keys, *values = (Stored*)s.values;
#pragma omp for schedule(dynamic, 1) collapse(2) nowait
  for (int64_t b = 0; b < s.batch; b++)
    for (int64_t j = 0; j < s.kv_heads; j++) {
      const float *cos = s.cos + b * H, *sin = s.sin + b * H;
      const int64_t place = ((layer * s.batch + b) * s.kv_heads + j) * s.capacity * H;
      float* key = k + (b * s.kv_heads + j) * H;
      rotate(key, cos, sin, H);
      round_to(keys + place + s.length * H, key, H);
      round_to(values + place + s.length * H, v + (b * s.kv_heads + j) * H, H);
      for (int64_t g = 0; g < queries; g++) {
        const int64_t head = b * s.heads + j * queries + g;
        rotate(q + head * H, cos, sin, H);
        const uint8_t* keep = s.keep ? s.keep + b * slots : nullptr;
        attend(q + head * H, keys + place, values + place, keep, slots, H, weights, out + head * H);
      }
    }
}

}  // namespace

extern "C" {

// Bytes of the structures, so that the caller can see whether it means the same ones.
int64_t filmstrip_sizes() { return sizeof(Matrix) * 1000000 + sizeof(Layer) * 1000 + sizeof(Step); }

// How many floats of scratch a step needs.
int64_t filmstrip_scratch(const Step* step) {
  const Step& s = *step;
  const int64_t asked = s.heads * s.head_dim, kept = s.kv_heads * s.head_dim;
  const int64_t shared = s.batch * (2 * asked + 2 * kept + s.inner);
  return shared + s.threads * (s.batch * s.width + s.capacity + LANES);
}

// Runs the step: x becomes the last hidden state before the final norm, the cache has one slot more, logits are written.
void filmstrip_step(const Step* step) {
  const Step& s = *step;
  const int64_t B = s.batch, D = s.width, asked = s.heads * s.head_dim, kept = s.kv_heads * s.head_dim;
  float* q = s.scratch;
  float* k = q + B * asked;
  float* v = k + B * kept;
  float* read = v + B * kept;
  float* inner = read + B * asked;
  float* own = inner + B * s.inner;
#pragma omp parallel num_threads(s.threads)
  {
    float* normed = own + omp_get_thread_num() * (B * D + s.capacity + LANES);
    float* weights = normed + B * D;
    const auto into = [B](float* out, int64_t width) {
      return [=](int64_t row, const float* values) {
        for (int64_t b = 0; b < B; b++) out[b * width + row] = values[b];
      };
    };
    const auto add = [&](int64_t row, const float* values) {
      for (int64_t b = 0; b < B; b++) s.x[b * D + row] += values[b];
    };
    for (int64_t l = 0; l < s.num_layers; l++) {
      const Layer& layer = s.layers[l];
      normalise(s.x, layer.attention_norm, B, D, s.eps, normed);
      multiply(layer.q, B, normed, into(q, asked));
      multiply(layer.k, B, normed, into(k, kept));
      multiply(layer.v, B, normed, into(v, kept));
#pragma omp barrier
      if (s.kv == BFLOAT16) attention<BFloat16>(s, l, q, k, v, weights, read);
      else if (s.kv == FLOAT16) attention<Float16>(s, l, q, k, v, weights, read);
      else attention<float>(s, l, q, k, v, weights, read);
#pragma omp barrier
      multiply(layer.o, B, read, add);
#pragma omp barrier
      normalise(s.x, layer.mlp_norm, B, D, s.eps, normed);
      multiply_gated(layer.gate, layer.up, B, normed, inner);
#pragma omp barrier
      multiply(layer.down, B, inner, add);
#pragma omp barrier
    }
    normalise(s.x, s.final_norm, B, D, s.eps, normed);
    multiply(s.head, B, normed, into(s.logits, s.head.rows));
  }
}

// y (rows of x, rows of m) = x m^T + bias, for one to 8 rows of x.
void filmstrip_product(const Matrix* matrix, const float* x, int64_t batch, int32_t threads, float* y) {
#pragma omp parallel num_threads(threads)
  multiply(*matrix, int(batch), x, [&](int64_t row, const float* values) {
    for (int64_t b = 0; b < batch; b++) y[b * matrix->rows + row] = values[b];
  });
}

}  // extern "C"
