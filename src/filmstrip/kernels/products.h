// Products of a stored matrix with one to 8 vectors: each weight is read once and used for all of them.
//
// Rows are the outer loop and sums stay in registers, so what bounds the speed is reading memory, at any width of storage.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__F16C__) || defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

// `Stored` types are for reading and writing anywhere: copying a register's worth of bytes some other way goes through
// the stack, in pieces, which takes ten times as long.
typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef float StoredFloats __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t StoredHalves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef int8_t StoredBytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint8_t StoredNibbles __attribute__((vector_size(LANES), aligned(1), may_alias));

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INT8 = 3, INT4 = 4 };

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

// A weight of `rows` outputs and `cols` inputs, row after row; bias may be null.
// INT8 and INT4 have one float16 scale for every `group` inputs of a row. A group of INT4 is group / 2 bytes: value i in
// the low half of byte i, value i + group / 2 in the high half, both stored plus 8.
struct Matrix {
  const void* data;
  const Float16* scales;
  const float* bias;
  int64_t rows, cols, group;
  int32_t kind;
};

namespace {

constexpr int MAX_ROWS = 8;
constexpr int NEAR = 2, ONCE = 0;  // for __builtin_prefetch: into the second nearest cache; used once, into the nearest
constexpr int64_t LINE = 64, AHEAD = 4096;  // bytes

inline Vector load(const float* p) { return *(const StoredFloats*)p; }

inline void store(float* p, Vector v) { *(StoredFloats*)p = v; }

// Halves are added to each other until four are left: a chain of additions would take longer than a short row.
inline float sum(Vector v) {
  typedef float Four __attribute__((vector_size(16)));
  Four parts[LANES / 4];
  std::memcpy(parts, &v, sizeof v);
  for (int n = LANES / 8; n; n /= 2)
    for (int i = 0; i < n; i++) parts[i] += parts[i + n];
  return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

inline Vector load(const BFloat16* p) {
  return (Vector)(__builtin_convertvector(*(const StoredHalves*)p, Ints) << 16);
}

inline float widen(uint16_t bits) {  // IEEE half precision, subnormals included
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  uint32_t wide = magnitude >= 0x7c00 ? (magnitude << 13) | 0x7f800000 : (magnitude << 13) + 0x38000000;
  float value;
  if (magnitude < 0x400) {
    value = float(magnitude) * 0x1p-24f;
    std::memcpy(&wide, &value, 4);
  }
  wide |= sign;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline Vector load(const Float16* p) {
#if defined(__AVX512F__)
  return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Vector v;
  for (int i = 0; i < LANES; i++) v[i] = widen(p[i].bits);
  return v;
#endif
}

// LANES bytes as whole numbers. By name, since GCC makes code of `__builtin_convertvector` that takes them one by one.
inline Ints wide(const int8_t* p) {
#if defined(__AVX512F__)
  return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  return __builtin_convertvector(*(const StoredBytes*)p, Ints);
#endif
}
inline Ints wide(const uint8_t* p) {
#if defined(__AVX512F__)
  return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  return __builtin_convertvector(*(const StoredNibbles*)p, Ints);
#endif
}

inline Vector load(const int8_t* p) { return __builtin_convertvector(wide(p), Vector); }

// Both halves of LANES bytes of INT4.
inline void load(const uint8_t* p, Vector& low, Vector& high) {
  const Ints both = wide(p);
#if defined(__AVX512F__)
  const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  low = (Vector)_mm512_permutexvar_ps((__m512i)both, values);  // by the four lowest bits
  high = (Vector)_mm512_permutexvar_ps((__m512i)(both >> 4), values);
#else
  low = __builtin_convertvector((both & 15) - 8, Vector);
  high = __builtin_convertvector((both >> 4) - 8, Vector);
#endif
}

inline float as_float(float x) { return x; }
inline float as_float(BFloat16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}
inline float as_float(Float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  return widen(x.bits);
#endif
}

// To the nearest, ties to even, as PyTorch rounds.
inline void round_to(float* out, const float* x, int64_t count) { std::memcpy(out, x, count * sizeof(float)); }
inline void round_to(BFloat16* out, const float* x, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    out[i].bits = x[i] != x[i] ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
}
inline uint16_t narrow(float x) {  // IEEE half precision, subnormals included
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65,520 and more
  if (magnitude < 0x38800000) return uint16_t(sign | uint32_t(std::nearbyint(std::fabs(x) * 0x1p24f)));
  return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
}
inline void round_to(Float16* out, const float* x, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
#if defined(__F16C__)
    out[i].bits = _cvtss_sh(x[i], _MM_FROUND_TO_NEAREST_INT);
#else
    out[i].bits = narrow(x[i]);
#endif
  }
}

// Asks memory for what will be read later than the `bytes` at `p`: the same place of the next rows, `next` bytes on, or
// of the only row, what comes `AHEAD`. Arithmetic would otherwise let memory wait.
template <int R>
inline void ask_ahead(const void* p, int64_t bytes, int64_t next) {
  for (int64_t i = 0; i < bytes; i += LINE) {
    if (R == 1) __builtin_prefetch((const char*)p + AHEAD + i, 0, ONCE);
    else __builtin_prefetch((const char*)p + next + i, 0, NEAR);
  }
}

// R rows of a matrix times B vectors, which lie `stride` apart: out[r][b]. Sums run in R * B registers, in an order that
// depends on neither.
template <int R, int B, typename Weight>
inline void dot_rows(const Weight* w, const float* x, int64_t cols, int64_t stride, float (*out)[MAX_ROWS]) {
  constexpr int U = R == 1 ? 2 : 1;  // so that a line of 16-bit weights is asked for once
  Vector sums[R][B] = {};
  const auto add = [&](int64_t c) {
    Vector inputs[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) inputs[b] = load(x + b * stride + c);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      // Not by `ask_ahead`: with its address GCC makes code for four rows of four vectors that is a seventh slower.
      if (R > 1) __builtin_prefetch(w + (r + R) * cols + c, 0, NEAR);
      const Vector weights = load(w + r * cols + c);
#pragma GCC unroll 8
      for (int b = 0; b < B; b++) sums[r][b] += weights * inputs[b];
    }
  };
  int64_t c = 0;
  for (; c + U * LANES <= cols; c += U * LANES) {
    if (R == 1) ask_ahead<R>(w + c, U * LANES * sizeof(Weight), 0);
#pragma GCC unroll 2
    for (int u = 0; u < U; u++) add(c + u * LANES);
  }
  for (; c + LANES <= cols; c += LANES) add(c);
  for (int r = 0; r < R; r++)
    for (int b = 0; b < B; b++) {
      float rest = sum(sums[r][b]);
      for (int64_t i = c; i < cols; i++) rest += as_float(w[r * cols + i]) * x[b * stride + i];
      out[r][b] = rest;
    }
}

// The same for whole numbers: those of a group are summed first, then scaled.
template <int R, int B>
inline void dot_rows(const int8_t* w, const Float16* scales, const float* x, int64_t cols, int64_t group, int64_t stride,
                     float (*out)[MAX_ROWS]) {
  Vector sums[R][B] = {};
  const int64_t groups = cols / group;
  for (int64_t g = 0; g < groups; g++) {
    Vector parts[R][B] = {};
    for (int r = 0; r < R; r++) ask_ahead<R>(w + r * cols + g * group, group, R * cols);
    for (int64_t c = g * group; c < (g + 1) * group; c += LANES) {
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const Vector weights = load(w + r * cols + c);
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) parts[r][b] += weights * load(x + b * stride + c);
      }
    }
    for (int r = 0; r < R; r++)
      for (int b = 0; b < B; b++) sums[r][b] += parts[r][b] * as_float(scales[r * groups + g]);
  }
  for (int r = 0; r < R; r++)
    for (int b = 0; b < B; b++) out[r][b] = sum(sums[r][b]);
}

// Two in a byte.
template <int R, int B>
inline void dot_rows(const uint8_t* w, const Float16* scales, const float* x, int64_t cols, int64_t group, int64_t stride,
                     float (*out)[MAX_ROWS]) {
  Vector sums[R][B] = {};
  const int64_t groups = cols / group, half = group / 2;
  for (int64_t g = 0; g < groups; g++) {
    Vector parts[R][B] = {};
    for (int64_t c = 0; c < half; c += LANES) {
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const uint8_t* place = w + r * (cols / 2) + g * half + c;
        ask_ahead<R>(place, 1, R * (cols / 2));
        Vector low, high;
        load(place, low, high);
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) {
          const float* inputs = x + b * stride + g * group + c;
          parts[r][b] += low * load(inputs);
          parts[r][b] += high * load(inputs + half);
        }
      }
    }
    for (int r = 0; r < R; r++)
      for (int b = 0; b < B; b++) sums[r][b] += parts[r][b] * as_float(scales[r * groups + g]);
  }
  for (int r = 0; r < R; r++)
    for (int b = 0; b < B; b++) out[r][b] = sum(sums[r][b]);
}

// Rows from `row` on, R of them or, where fewer are `left`, one, times B vectors; how many rows it were.
template <int R, int B>
int some_rows(const Matrix& m, int64_t row, int64_t left, const float* x, int64_t stride, float (*out)[MAX_ROWS]) {
  if (R > 1 && left < R) return some_rows<1, B>(m, row, left, x, stride, out);
  const int64_t place = row * m.cols;
  switch (m.kind) {
    case BFLOAT16: dot_rows<R, B>((const BFloat16*)m.data + place, x, m.cols, stride, out); break;
    case FLOAT16: dot_rows<R, B>((const Float16*)m.data + place, x, m.cols, stride, out); break;
    case INT8:
      dot_rows<R, B>((const int8_t*)m.data + place, m.scales + place / m.group, x, m.cols, m.group, stride, out);
      break;
    case INT4:
      dot_rows<R, B>((const uint8_t*)m.data + place / 2, m.scales + place / m.group, x, m.cols, m.group, stride, out);
      break;
    default: dot_rows<R, B>((const float*)m.data + place, x, m.cols, stride, out);
  }
  return R;
}

// The same for any batch, at most P vectors at a time: the rows are in a near cache when they are read again.
template <int R, int P>
int some_rows_of(int batch, const Matrix& m, int64_t row, int64_t left, const float* x, int64_t stride,
                 float (*out)[MAX_ROWS]) {
  int done = 1;
  for (int b = 0; b < batch; b += P) {
    float part[R][MAX_ROWS];
    const float* inputs = x + b * stride;
    const int count = std::min(batch - b, P);
    switch (count) {
      case 1: done = some_rows<R, 1>(m, row, left, inputs, stride, part); break;
      case 2: done = some_rows<R, 2>(m, row, left, inputs, stride, part); break;
      case 3: done = some_rows<R, 3>(m, row, left, inputs, stride, part); break;
      case 4: done = some_rows<R, 4>(m, row, left, inputs, stride, part); break;
      default:
        if constexpr (P == 8) {
          switch (count) {
            case 5: done = some_rows<R, 5>(m, row, left, inputs, stride, part); break;
            case 6: done = some_rows<R, 6>(m, row, left, inputs, stride, part); break;
            case 7: done = some_rows<R, 7>(m, row, left, inputs, stride, part); break;
            default: done = some_rows<R, 8>(m, row, left, inputs, stride, part);
          }
        }
    }
    for (int r = 0; r < done; r++)
      for (int i = 0; i < count; i++) out[r][b + i] = part[r][i] + (m.bias ? m.bias[row + r] : 0.0f);
  }
  return done;
}

// One row after another for one or two vectors, because memory is read fastest from front to back: rows side by side
// reach four fifths of that. Not for more vectors or numbers of 4 bits, where arithmetic counts, nor for floats in
// registers of 8, where each addition to the one sum would wait for the last (whole numbers have a sum for each group);
// there it is as many rows and vectors at once as leave room in the registers (32 of 16 floats, 16 of 8) for what is
// multiplied.
int some_rows(int batch, const Matrix& m, int64_t row, int64_t left, const float* x, int64_t stride,
              float (*out)[MAX_ROWS]) {
  constexpr bool many = LANES == 16;
  if (batch < 3 && (m.kind == INT8 || (many && m.kind < INT8)))
    return some_rows_of<1, 4>(batch, m, row, left, x, stride, out);
  if (m.kind < INT8) {
    if (many && batch > 4) return some_rows_of<3, 8>(batch, m, row, left, x, stride, out);
    return many || batch < 4 ? some_rows_of<4, 4>(batch, m, row, left, x, stride, out)
                             : some_rows_of<3, 4>(batch, m, row, left, x, stride, out);
  }
  if (batch == 1) return some_rows_of<4, 4>(batch, m, row, left, x, stride, out);
  return many || batch == 2 ? some_rows_of<2, 4>(batch, m, row, left, x, stride, out)
                            : some_rows_of<1, 4>(batch, m, row, left, x, stride, out);
}

// Pieces that threads take one after another, so that one that is held up does not hold up the others.
constexpr int64_t PIECE = 32;

// `use(row, value of each of the batch)` for rows [start, end) of m x.
template <typename Use>
void multiply_piece(const Matrix& m, int batch, const float* x, int64_t start, int64_t end, Use use) {
  float out[4][MAX_ROWS];
  for (int64_t row = start; row < end;) {
    const int done = some_rows(batch, m, row, end - row, x, m.cols, out);
    for (int r = 0; r < done; r++) use(row + r, out[r]);
    row += done;
  }
}

// The same for every row, divided among the threads of a team, which all call it. It ends without waiting for them.
template <typename Use>
void multiply(const Matrix& m, int batch, const float* x, Use use) {
#pragma omp for schedule(dynamic, 1) nowait
  for (int64_t start = 0; start < m.rows; start += PIECE)
    multiply_piece(m, batch, x, start, std::min(start + PIECE, m.rows), use);
}

// silu(gate x) * (up x), out (B, rows).
void multiply_gated(const Matrix& gate, const Matrix& up, int batch, const float* x, float* out) {
#pragma omp for schedule(dynamic, 1) nowait
  for (int64_t start = 0; start < gate.rows; start += PIECE) {
    const int64_t end = std::min(start + PIECE, gate.rows);
    multiply_piece(gate, batch, x, start, end, [&](int64_t row, const float* values) {
      for (int b = 0; b < batch; b++) out[b * gate.rows + row] = values[b] / (1.0f + std::exp(-values[b]));
    });
    multiply_piece(up, batch, x, start, end, [&](int64_t row, const float* values) {
      for (int b = 0; b < batch; b++) out[b * gate.rows + row] *= values[b];
    });
  }
}

}  // namespace
