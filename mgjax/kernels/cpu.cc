// Kernels of the language model's decode step on CPU, called by XLA (jax.ffi); kernels/cpu.py compiles and loads them.
//
// A decode step has few rows and reads every weight once: it takes as long as reading them takes. `Product` reads weights
// in the type that they are stored in and sums in float32; `Attend` reads the slots of the KV cache that are filled.
// Vectors are those of the compiler (GCC and Clang), as wide as the CPU that it compiles for has them.

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kRegisters = 32;
#else
constexpr int kLanes = 4;
constexpr int kRegisters = 16;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

template <typename V>
inline V Load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

// Numbers of each type as float32. bfloat16 (uint16_t here) is the upper half of it.
inline Floats Widened(const float* p) { return Load<Floats>(p); }
#if defined(__AVX512F__)  // GCC converts these vectors number by number
inline Floats Widened(const uint16_t* p) {
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(Load<__m256i>(p)), 16);
}
inline Floats Widened(const int8_t* p) { return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(Load<__m128i>(p))); }
#elif defined(__AVX2__)
inline Floats Widened(const uint16_t* p) {
  return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(Load<__m128i>(p)), 16);
}
inline Floats Widened(const int8_t* p) {
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
#else
inline Floats Widened(const uint16_t* p) {
  return (Floats)(__builtin_convertvector(Load<Halves>(p), Words) << 16);
}
inline Floats Widened(const int8_t* p) {
  return __builtin_convertvector(__builtin_convertvector(Load<Bytes>(p), Ints), Floats);
}
#endif
inline float Widened1(const float* p) { return *p; }
inline float Widened1(const int8_t* p) { return *p; }
inline float Widened1(const uint16_t* p) {
  uint32_t bits = uint32_t(*p) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

// Lane i of the result is that of one vector where bit kBit of i is clear, else that of the other, plus its neighbour.
template <int kBit, typename V, int... kLane>
inline V Folded(V a, V b, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kLane & kBit ? kLanes + kLane - kBit : kLane)...) +
         __builtin_shufflevector(a, b, (kLane & kBit ? kLanes + kLane : kLane + kBit)...);
#else
  return __builtin_shuffle(a, b, Ints{(kLane & kBit ? kLanes + kLane - kBit : kLane)...}) +
         __builtin_shuffle(a, b, Ints{(kLane & kBit ? kLanes + kLane : kLane + kBit)...});
#endif
}

// Lane i of the result is the sum of the lanes of vectors[i].
template <int kHalf = kLanes / 2, typename V>
inline V Sums(V* vectors) {
  for (int i = 0; i < kHalf; ++i)
    vectors[i] = Folded<kHalf>(vectors[i], vectors[i + kHalf], std::make_integer_sequence<int, kLanes>());
  if constexpr (kHalf > 1) return Sums<kHalf / 2>(vectors);
  return vectors[0];
}

// The sums of the lanes of `kCount` vectors.
template <int kCount, typename V, typename T>
inline void SumAll(const V* vectors, T* sums) {
  for (int first = 0; first < kCount; first += kLanes) {
    V some[kLanes] = {};
    const int count = std::min(kLanes, kCount - first);
    for (int i = 0; i < count; ++i) some[i] = vectors[first + i];
    V summed = Sums(some);
    std::memcpy(sums + first, &summed, count * sizeof(T));
  }
}

inline float Sum(Floats v) {
  float sum;
  SumAll<1>(&v, &sum);
  return sum;
}

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Threads of XLA that help with work, and then wait a little for more of it: between two products of a step lies less time
// than waking a thread takes.
class Helpers {
 public:
  using Work = std::function<void()>;

  static Helpers& All() {
    static Helpers* helpers = new Helpers;  // never deleted: threads may wait here while the process ends
    return *helpers;
  }

  // Has up to `count` threads call `work`, some of them late or never.
  void Call(ffi::ThreadPool& pool, int64_t count, std::shared_ptr<Work> work) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      work_ = std::move(work);
      posted_.fetch_add(1, std::memory_order_release);
    }
    for (int64_t i = waiting_.load(std::memory_order_relaxed); i < count; ++i) pool.Schedule([this] { Help(); });
  }

 private:
  void Help() {
    uint64_t seen = 0;
    while (std::shared_ptr<Work> work = Next(seen)) (*work)();
  }

  // The last work, once any was posted since `seen` was; none after a while without.
  std::shared_ptr<Work> Next(uint64_t& seen) {
    waiting_.fetch_add(1, std::memory_order_relaxed);
    auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
    bool any;
    while (!(any = posted_.load(std::memory_order_acquire) != seen) && std::chrono::steady_clock::now() < until)
      for (int i = 0; i < 8; ++i) Pause();
    waiting_.fetch_sub(1, std::memory_order_relaxed);
    if (!any) return nullptr;
    std::lock_guard<std::mutex> lock(mutex_);
    seen = posted_.load(std::memory_order_relaxed);
    return work_;
  }

  std::mutex mutex_;
  std::shared_ptr<Work> work_;  // the last posted
  std::atomic<uint64_t> posted_{0};
  std::atomic<int64_t> waiting_{0};
};

int64_t NumThreads(const ffi::ThreadPool& pool) { return std::max<int64_t>(1, pool.num_threads()); }  // 0: none is told

// Calls `run(task)` for every task below `count`, on XLA's threads and this one. It waits for the tasks, not for the
// helpers, who may come late or never: all threads of the pool may be waiting just as this one does.
template <typename F>
void InParallel(ffi::ThreadPool& pool, int64_t count, F run) {
  struct Progress {
    std::atomic<int64_t> claimed{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  auto work = [=] {
    for (int64_t task; (task = progress->claimed.fetch_add(1, std::memory_order_relaxed)) < count;) {
      run(task);
      progress->done.fetch_add(1, std::memory_order_release);
    }
  };
  int64_t helpers = std::min(NumThreads(pool), count) - 1;
  if (helpers > 0) Helpers::All().Call(pool, helpers, std::make_shared<Helpers::Work>(work));
  work();
  for (int spins = 0; progress->done.load(std::memory_order_acquire) < count; ++spins)
    spins < 1000 ? Pause() : std::this_thread::yield();
}

// Fetches what is read later: the next tile, or where that is far off, what comes soon in the same row. Short rows, such
// as the slots of attention, are read one after the other.
constexpr int64_t kShort = 256, kAhead = 2048;

template <int kOuts, typename W>
inline void Prefetch(const W* at, int64_t in) {
  if (in <= kShort)
    __builtin_prefetch(reinterpret_cast<const char*>(at) + kAhead);
  else if (sizeof(W) == 4)
    __builtin_prefetch(reinterpret_cast<const char*>(at) + 512);
  else
    __builtin_prefetch(at + kOuts * in, 0, 2);
}

// The inputs [begin, end) of kRows rows times kOuts rows of weights.
template <int kRows, int kOuts, typename W>
inline void Tile(const float* x, const W* w, int64_t in, int64_t begin, int64_t end, float* sums) {
  constexpr int kLine = std::max(kLanes, int(64 / sizeof(W)));
  Floats totals[kRows * kOuts] = {};
  auto add = [&](int64_t i) {
    Floats xs[kRows];
    for (int r = 0; r < kRows; ++r) xs[r] = Load<Floats>(x + r * in + i);
    for (int o = 0; o < kOuts; ++o) {
      Floats ws = Widened(w + o * in + i);
      for (int r = 0; r < kRows; ++r) totals[r * kOuts + o] += xs[r] * ws;
    }
  };
  int64_t i = begin;
  for (; i + kLine <= end; i += kLine) {
    for (int o = 0; o < kOuts; ++o) Prefetch<kOuts>(w + o * in + i, in);
    for (int lane = 0; lane < kLine; lane += kLanes) add(i + lane);
  }
  for (; i + kLanes <= end; i += kLanes) add(i);
  SumAll<kRows * kOuts>(totals, sums);
  for (; i < end; ++i)
    for (int r = 0; r < kRows; ++r)
      for (int o = 0; o < kOuts; ++o) sums[r * kOuts + o] += x[r * in + i] * Widened1(w + o * in + i);
}

constexpr int64_t kChunk = 1024;  // inputs that the tiles of a few rows go over at once, to stay in the nearest cache

template <int kRows, typename W>
void Columns(const float* x, int64_t in, const W* w, const float* scale, float* y, int64_t out, int64_t begin, int64_t end) {
  // The totals stay in registers.
  constexpr int kOuts = kRegisters < 32 ? std::max(2, 8 / kRows) : kRows > 2 || sizeof(W) < 4 ? 4 : 8;
  int64_t chunk = kRows > 2 ? kChunk : in;
  for (int64_t first = 0; first < in; first += chunk) {
    int64_t last = std::min(in, first + chunk);
    auto tile = [&]<int kNum>(int64_t o) {
      float sums[kRows * kNum];
      Tile<kRows, kNum>(x, w + o * in, in, first, last, sums);
      for (int r = 0; r < kRows; ++r)
        for (int n = 0; n < kNum; ++n) {
          float* at = y + r * out + o + n;
          float sum = first ? *at + sums[r * kNum + n] : sums[r * kNum + n];
          *at = scale && last == in ? sum * scale[o + n] : sum;
        }
    };
    int64_t o = begin;
    for (; o + kOuts <= end; o += kOuts) tile.template operator()<kOuts>(o);
    for (; o < end; ++o) tile.template operator()<1>(o);
  }
}

// Calls `columns(r, begin, end)` with the rows of x from `r`, as many as its template's argument, and rows of weights.
template <typename F>
void ByRows(ffi::ThreadPool& pool, int64_t rows, int64_t out, int64_t bytes, F columns) {
  // A task is long enough that starting it is nothing, and there are two for each thread.
  int64_t size = std::min<int64_t>(256 * 1024 / bytes, out / (2 * NumThreads(pool)));
  size = std::max<int64_t>(8, size / 8 * 8);
  InParallel(pool, (out + size - 1) / size, [=](int64_t task) {
    int64_t begin = task * size, end = std::min(out, begin + size);
    for (int64_t r = 0; r < rows;) {
      if (rows - r >= 4) { columns.template operator()<4>(r, begin, end); r += 4; }
      else if (rows - r >= 2) { columns.template operator()<2>(r, begin, end); r += 2; }
      else { columns.template operator()<1>(r, begin, end); r += 1; }
    }
  });
}

template <typename W>
void Product(ffi::ThreadPool& pool, int64_t rows, const float* x, int64_t in, const W* w, const float* scale, float* y,
             int64_t out) {
  ByRows(pool, rows, out, in * sizeof(W), [=]<int kRows>(int64_t r, int64_t begin, int64_t end) {
    Columns<kRows>(x + r * in, in, w, scale, y + r * out, out, begin, end);
  });
}

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
#define MGJAX_INT8_DOTS
// Int8 weights by instructions that add products of four int8 to an int32. x has 15 bits for that, in two int8:
// x = (128 * high + low) * step. That is 256 times finer than the weights are, and the sums are exact.
typedef int8_t Quads __attribute__((vector_size(4 * kLanes)));

#if defined(__AVX512VNNI__)  // of x86, the weights' int8 is unsigned
constexpr int32_t kOffset = 128;
inline Ints Dot(Ints total, Quads w, Quads x) { return (Ints)_mm512_dpbusd_epi32((__m512i)total, (__m512i)w, (__m512i)x); }
#elif defined(__AVXVNNI__)
constexpr int32_t kOffset = 128;
inline Ints Dot(Ints total, Quads w, Quads x) { return (Ints)_mm256_dpbusd_avx_epi32((__m256i)total, (__m256i)w, (__m256i)x); }
#else
constexpr int32_t kOffset = 0;
inline Ints Dot(Ints total, Quads w, Quads x) { return (Ints)vdotq_s32((int32x4_t)total, (int8x16_t)w, (int8x16_t)x); }
#endif

struct Quantized {
  std::vector<int8_t> x;        // [rows, 2, in], high and low
  std::vector<float> step;      // [rows]
  std::vector<int32_t> offset;  // [rows, 2], what the offset of the weights adds to the sums

  Quantized(int64_t rows, int64_t in) : x(2 * rows * in), step(rows), offset(2 * rows) {}

  void Set(int64_t r, const float* row, int64_t in) { Set(row, in, x.data() + 2 * r * in, step[r], offset.data() + 2 * r); }

 private:
  // Whole numbers, because compilers make vectors of them: a number without its sign orders as its bits do.
  static void Set(const float* row, int64_t in, int8_t* x, float& step, int32_t* offset) {
    constexpr uint32_t kInfinity = 0x7f800000;
    uint32_t bits = 0;
    for (int64_t i = 0; i < in; ++i) bits = std::max(bits, std::bit_cast<uint32_t>(row[i]) & 0x7fffffff);
    bool finite = bits < kInfinity;
    step = finite ? std::max(std::bit_cast<float>(bits), 1e-30f) / (127 * 128) : std::numeric_limits<float>::quiet_NaN();
    float steps = finite ? 1 / step : 0;
    int32_t highs = 0, lows = 0;
    for (int64_t i = 0; finite && i < in; ++i) {
      int32_t v = std::bit_cast<int32_t>(row[i] * steps + 12582912.0f) - 0x4b400000;  // rounds, as in Exp
      int32_t high = (v + 64) >> 7, low = v - 128 * high;  // low is -64 to 63
      x[i] = int8_t(high);
      x[in + i] = int8_t(low);
      highs += high;
      lows += low;
    }
    offset[0] = kOffset * highs;
    offset[1] = kOffset * lows;
  }
};

template <int kRows, int kOuts>
inline void DotTile(const int8_t* x, const int8_t* w, int64_t in, int32_t* sums) {
  constexpr int kLine = 4 * kLanes;
  Ints totals[2 * kRows * kOuts] = {};
  const Quads offset = Quads{} + int8_t(kOffset);
  for (int64_t i = 0; i < in; i += kLine) {
    Quads xs[2 * kRows];
    for (int r = 0; r < 2 * kRows; ++r) xs[r] = Load<Quads>(x + r * in + i);
    for (int o = 0; o < kOuts; ++o) {
      Prefetch<kOuts>(w + o * in + i, in);
      Quads ws = Load<Quads>(w + o * in + i) ^ offset;
      for (int r = 0; r < 2 * kRows; ++r) totals[r * kOuts + o] = Dot(totals[r * kOuts + o], ws, xs[r]);
    }
  }
  SumAll<2 * kRows * kOuts>(totals, sums);
}

// The outputs o to o + kOuts of the rows r to r + kRows.
template <int kRows, int kOuts>
inline void DotOuts(const Quantized& x, int64_t r, const int8_t* w, int64_t in, const float* scale, float* y, int64_t out,
                    int64_t o) {
  int32_t sums[2 * kRows * kOuts];
  DotTile<kRows, kOuts>(x.x.data() + 2 * r * in, w + o * in, in, sums);
  for (int k = 0; k < kRows; ++k) {
    const int32_t* offset = x.offset.data() + 2 * (r + k);
    for (int n = 0; n < kOuts; ++n) {
      float high = sums[2 * k * kOuts + n] - offset[0], low = sums[(2 * k + 1) * kOuts + n] - offset[1];
      float sum = (high * 128 + low) * x.step[r + k];
      y[(r + k) * out + o + n] = scale ? sum * scale[o + n] : sum;
    }
  }
}

void DotProduct(ffi::ThreadPool& pool, int64_t rows, const float* x, int64_t in, const int8_t* w, const float* scale,
                float* y, int64_t out) {
  auto quantized = std::make_shared<Quantized>(rows, in);  // a helper who comes late holds it
  constexpr int64_t kSome = 8;
  InParallel(pool, (rows + kSome - 1) / kSome, [=](int64_t task) {
    for (int64_t r = task * kSome; r < std::min(rows, (task + 1) * kSome); ++r) quantized->Set(r, x + r * in, in);
  });
  ByRows(pool, rows, out, in, [=]<int kRows>(int64_t r, int64_t begin, int64_t end) {
    constexpr int kOuts = kRegisters < 32 ? std::max(1, 4 / kRows) : kRows > 2 ? 2 : 4;
    int64_t o = begin;
    for (; o + kOuts <= end; o += kOuts) DotOuts<kRows, kOuts>(*quantized, r, w, in, scale, y, out, o);
    for (; o < end; ++o) DotOuts<kRows, 1>(*quantized, r, w, in, scale, y, out, o);
  });
}
#endif

void Product(ffi::ThreadPool& pool, int64_t rows, const float* x, int64_t in, const int8_t* w, const float* scale, float* y,
             int64_t out) {
#if defined(MGJAX_INT8_DOTS)
  if (in % (4 * kLanes) == 0) return DotProduct(pool, rows, x, in, w, scale, y, out);
#endif
  return Product<int8_t>(pool, rows, x, in, w, scale, y, out);
}

ffi::Error ProductImpl(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::AnyBuffer w, ffi::Buffer<ffi::F32> scale,
                       ffi::ResultBuffer<ffi::F32> y) {
  auto xs = x.dimensions(), ws = w.dimensions();
  if (xs.size() != 2 || ws.size() != 2 || xs[1] != ws[1] || (scale.element_count() && int64_t(scale.element_count()) != ws[0]))
    return ffi::Error::InvalidArgument("mgjax_product takes x [n, i], weights [o, i] and scales [o] or [0]");
  const float* scales = scale.element_count() ? scale.typed_data() : nullptr;
  auto run = [&](auto* weights) {
    Product(pool, xs[0], x.typed_data(), xs[1], weights, scales, y->typed_data(), ws[0]);
    return ffi::Error::Success();
  };
  switch (w.element_type()) {
    case ffi::F32: return run(static_cast<const float*>(w.untyped_data()));
    case ffi::BF16: return run(static_cast<const uint16_t*>(w.untyped_data()));
    case ffi::S8: return run(static_cast<const int8_t*>(w.untyped_data()));
    default: return ffi::Error::InvalidArgument("mgjax_product takes weights of float32, bfloat16 or int8");
  }
}

// e^x for x <= 0, to 2 units in the last place (the polynomial of Cephes' expf); 0 below -87.
inline Floats Exp(Floats x) {
  const Floats least = Floats{} - 87.0f, magic = Floats{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
  Ints tiny = x < least;
  x = tiny ? least : x;
  Floats shifted = x * 1.44269504f + magic;
  Floats n = shifted - magic;
  Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = Floats{} + 1.9875691500e-4f;
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = p * r + c;
  p = p * r * r + r + 1.0f;
  Ints power = (((Ints)shifted - (Ints)magic) + 127) << 23;
  Floats y = p * (Floats)power;
  return tiny ? Floats{} : y;
}

// Softmax attention of one query to the first `slots` of the `all` of a head's keys and values, but for those that are
// not valid. Int8 has a scale for each slot.
template <typename W>
void AttendHead(const float* query, const W* keys, const W* values, const float* key_scales, const float* value_scales,
                const bool* valid, int64_t slots, int64_t all, int64_t width, float scale, float* scores, float* y) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  std::fill(y, y + width, 0.0f);
  if (valid) while (slots && !valid[slots - 1]) --slots;  // padding comes last, mostly
  if (!slots) return;
  int64_t m = 0;
  auto score = [&]<int kCount>() {
    Tile<1, kCount>(query, keys + m * width, width, 0, width, scores + m);
    if (key_scales) for (int i = 0; i < kCount; ++i) scores[m + i] *= key_scales[m + i];
    if (valid) for (int i = 0; i < kCount; ++i) if (!valid[m + i]) scores[m + i] = kNever;
    m += kCount;
  };
  while (m < slots && m + kLanes <= all) score.template operator()<kLanes>();
  while (m < slots) score.template operator()<1>();
  int64_t padded = (slots + kLanes - 1) / kLanes * kLanes;
  std::fill(scores + slots, scores + padded, kNever);
  Floats mosts = Floats{} + kNever;
  for (m = 0; m < padded; m += kLanes) {
    Floats some = Load<Floats>(scores + m);
    mosts = some > mosts ? some : mosts;  // NaN is not the largest, and stays NaN below
  }
  float most = kNever;
  for (int i = 0; i < kLanes; ++i) most = std::max(most, mosts[i]);
  Floats totals = {};
  for (m = 0; m < padded; m += kLanes) {
    Floats weights = Exp((Load<Floats>(scores + m) - most) * scale);
    totals += weights;
    std::memcpy(scores + m, &weights, sizeof weights);
  }
  float share = 1.0f / Sum(totals);
  for (m = 0; value_scales && m < slots; ++m) scores[m] *= value_scales[m];
  constexpr int kVectors = 4;
  int64_t e = 0;
  auto sum = [&]<int kCount>() {
    Floats sums[kCount] = {}, others[kCount] = {};  // of every other slot: an addition waits for the one before
    auto add = [&](int64_t m, Floats* to) {
      for (int k = 0; k < kCount; ++k) {
        const W* at = values + m * width + e + k * kLanes;
        if (k * kLanes * sizeof(W) % 64 == 0) __builtin_prefetch(reinterpret_cast<const char*>(at) + kAhead);
        to[k] += scores[m] * Widened(at);
      }
    };
    int64_t m = 0;
    for (; m + 2 <= slots; m += 2) add(m, sums), add(m + 1, others);
    if (m < slots) add(m, sums);
    for (int k = 0; k < kCount; ++k) sums[k] += others[k];
    for (int k = 0; k < kCount; ++k) sums[k] *= share;
    std::memcpy(y + e, sums, sizeof sums);
    e += kCount * kLanes;
  };
  while (e + kVectors * kLanes <= width) sum.template operator()<kVectors>();
  while (e + kLanes <= width) sum.template operator()<1>();
  for (; e < width; ++e) {
    for (int64_t m = 0; m < slots; ++m) y[e] += scores[m] * Widened1(values + m * width + e);
    y[e] *= share;
  }
}

ffi::Error AttendImpl(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> query, ffi::AnyBuffer key, ffi::AnyBuffer value,
                      ffi::Buffer<ffi::F32> key_scale, ffi::Buffer<ffi::F32> value_scale, ffi::Buffer<ffi::PRED> valid,
                      ffi::Buffer<ffi::S32> filled, ffi::ResultBuffer<ffi::F32> y) {
  auto shape = key.dimensions();  // [b, h, m, e], the queries [b, h, e]
  auto queries = query.dimensions();
  bool fits = shape.size() == 4 && queries.size() == 3 && value.dimensions() == shape && queries[0] == shape[0] &&
              queries[1] == shape[1] && queries[2] == shape[3] && value.element_type() == key.element_type() &&
              (!valid.element_count() || int64_t(valid.element_count()) == shape[0] * shape[2]);
  bool scaled = key.element_type() == ffi::S8;
  for (auto* scales : {&key_scale, &value_scale})
    fits = fits && int64_t(scales->element_count()) == (scaled ? shape[0] * shape[1] * shape[2] : 0);
  if (!fits)
    return ffi::Error::InvalidArgument(
        "mgjax_attend takes queries [b, h, e], keys and values [b, h, m, e], and scales [b, h, m] of those of int8");
  int64_t heads = shape[1], all = shape[2], width = shape[3];
  int64_t slots = std::min<int64_t>(*filled.typed_data(), all);
  float scale = 1.0f / std::sqrt(float(width));
  auto run = [&](auto* keys, auto* values) {
    const float* q = query.typed_data();
    const float *key_scales = key_scale.typed_data(), *value_scales = value_scale.typed_data();
    const bool* mask = valid.element_count() ? valid.typed_data() : nullptr;
    float* result = y->typed_data();
    InParallel(pool, shape[0] * heads, [=](int64_t task) {
      thread_local std::vector<float> scores;
      scores.resize(slots + 2 * kLanes);
      AttendHead(q + task * width, keys + task * all * width, values + task * all * width,
                 scaled ? key_scales + task * all : nullptr, scaled ? value_scales + task * all : nullptr,
                 mask ? mask + task / heads * all : nullptr, slots, all, width, scale, scores.data(), result + task * width);
    });
    return ffi::Error::Success();
  };
  switch (key.element_type()) {
    case ffi::F32: return run(static_cast<const float*>(key.untyped_data()), static_cast<const float*>(value.untyped_data()));
    case ffi::BF16:
    case ffi::U16: return run(static_cast<const uint16_t*>(key.untyped_data()), static_cast<const uint16_t*>(value.untyped_data()));
    case ffi::S8: return run(static_cast<const int8_t*>(key.untyped_data()), static_cast<const int8_t*>(value.untyped_data()));
    default: return ffi::Error::InvalidArgument("mgjax_attend takes keys and values of float32, bfloat16 or int8");
  }
}

}  // namespace

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(mgjax_product, ProductImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(mgjax_attend, AttendImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

#pragma GCC visibility pop
