// SPDX-License-Identifier: BSD-3-Clause
// polar: A = (M M^T)^(-1/2) M by rational functions of the Gram matrix in float64, in stages.
//
// A stage computes the Gram matrix R of X (X is M at first) and multiplies X by a function of R that brings the
// singular values of X near 1. This function is two Zolotarev functions, one after the other, each a sum of
// (R + pole)^-1. R has the squares of the singular values, which costs half of the digits, so a stage trusts R only
// down to kResolved. If X has smaller singular values, the stage applies the first function alone, which raises them a
// thousandfold, and the next stage computes a new Gram matrix. So errors do not grow with the condition number of M:
// A M^T is symmetric to 1e-11 of the largest singular value, before A is rounded to float32.
#include "cholesky.h"
#include "kernels_cpu.h"
#include "lanczos.h"
#include "zolotarev.h"

namespace rf::RF_ISA {

void polar_multiply(const double* q, const double* m, double* out, int64_t rows, int64_t inner, int64_t cols,
                    int threads) {
  multiply(rows, cols, inner, Strided<const double>{q, inner, 1}, Strided<const double>{m, cols, 1}, Into{out, cols},
           threads);
}

namespace {

constexpr double kDeviation = 4e-8;  // of singular values from 1 after the second function of a stage
constexpr double kMargin = 1.01;     // factor on rtol, since the condition that decides the rank is an estimate
constexpr int kMostStages = 6, kFirstPoles = 3, kProbes = MR, kSquares = 5;

// Memory for one matrix d x n. Rows of square matrices are one cache line longer than needed: rows whose distance is a
// power of two would all fall into the same few sets of the cache.
struct Work {
  double* memory;

  static int64_t stride(int64_t d) { return blocks(d, 8) * 8 + 8; }
  static int64_t size(int64_t d, int64_t n) {
    return (1 + kSquares) * d * stride(d) + (kLanczosSteps + 1) * d + d * n + 4 * kProbes * d + 3 * kProbes * n +
           16 * 8;
  }
  double* take(int64_t count) {
    double* const taken = memory;
    memory += blocks(count, 8) * 8;
    return taken;
  }
};

// One matrix, or its transpose if it is tall, so that d <= n.
template <class S>
struct Polar {
  static constexpr double kSmallest = sizeof(S) == 4 ? 5e-4 : 2e-3, kResolved = kSmallest / 4;
  int64_t d, n, ld;  // ld: row stride of the square matrices
  Strided<const S> m;
  S* out;
  bool tall;  // out is n x d
  int threads;
  double rtol;
  Matrix r, square[kSquares];
  double *vectors, *x, *probe, *short_rows, *long_rows;
  Rational applied[kMostStages];
  double scale[kMostStages];
  double squared_norm = 0, condition = 0;

  Polar(int64_t d, int64_t n, Strided<const S> m, S* out, bool tall, double rtol, Work work, int threads)
      : d(d), n(n), ld(Work::stride(d)), m(m), out(out), tall(tall), threads(threads), rtol(rtol) {
    r = {work.take(d * ld), ld, 1};
    for (Matrix& s : square) s = {work.take(d * ld), ld, 1};
    vectors = work.take((kLanczosSteps + 1) * d);
    x = work.take(d * n);
    probe = work.take(kProbes * d);
    short_rows = work.take(3 * kProbes * d);
    long_rows = work.take(3 * kProbes * n);
    gaussian(probe, DType::f64, kProbes, d, d, Address{0, 0, 0, 0}, 1);
  }

  // y = (r + pole)^-1. Returns false if r + pole is not positive definite.
  bool invert(double pole, Matrix y, int on_threads) {
    for_each(d, on_threads, [&](int64_t i) {
      for (int64_t j = 0; j < d; ++j) y.data[i * ld + j] = r.data[i * ld + j];
      y.data[i * ld + i] += pole;
    });
    if (!factor(y, d, on_threads)) return false;
    invert_factored(y, d, on_threads);
    return true;
  }

  // square[to], square[to + 1], ... = (r + pole)^-1 for each pole. Each thread computes one of them as long as there is
  // one for every thread; then all threads share each of the rest.
  bool invert(const Rational& f, int to) {
    const int alone = threads == 1 ? 0 : f.count / threads * threads;
    bool right[kMostPoles];
    for_each(alone, threads, [&](int64_t p) { right[p] = invert(f.pole[p], square[to + p], 1); });
    for (int p = alone; p < f.count; ++p) right[p] = invert(f.pole[p], square[to + p], threads);
    bool all = true;
    for (int p = 0; p < f.count; ++p) all = all && right[p];
    return all;
  }

  // Combines the inverses that `invert` left. square[to] = Z(R), where f(x) = x Z(x^2). With `product` also
  // square[to + 1] = R Z(R). This takes no matrix product, since R (R + pole)^-1 = 1 - pole (R + pole)^-1.
  void combine(const Rational& f, int to, bool product) {
    double at_zero = 0;
    for (int p = 0; p < f.count; ++p) at_zero += f.weight[p];
    for_each(d, threads, [&](int64_t i) {
      for (int64_t j = i * ld; j < i * ld + d; j += kWidth<double>) {
        Full<double> z = {}, w = load<double, kWidth<double>>(r.data + j);
        for (int p = 0; p < f.count; ++p) {
          const Full<double> y = f.weight[p] * load<double, kWidth<double>>(square[to + p].data + j);
          z += y;
          w -= f.pole[p] * y;
        }
        store<double, kWidth<double>>(square[to].data + j, f.scale * z);
        if (product) store<double, kWidth<double>>(square[to + 1].data + j, f.scale * w);
      }
      square[to].data[i * ld + i] += f.scale;
      if (product) square[to + 1].data[i * ld + i] += f.scale * at_zero;
    });
  }

  // The singular value of M, divided by the largest one, that the stages before number `stage` have turned into x.
  double original(double x, int stage) const {
    for (; stage > 0; --stage) {
      const double y = x * scale[stage];
      double low = 0, high = kSmallest;
      for (int round = 0; round < 60; ++round) {
        const double middle = (low + high) / 2;
        (applied[stage - 1].of(middle) < y ? low : high) = middle;
      }
      x = low;
    }
    return x;
  }

  // out = q * from, or its transpose for a tall M
  template <class X>
  void finish(Matrix q, Strided<X> from) {
    if (tall)
      multiply(n, d, d, from.transposed(), q, Store<double, S>{out, d, 1.0}, threads);
    else
      multiply(d, n, d, q, from, Store<double, S>{out, n, 1.0}, threads);
  }

  enum Outcome { done, go_on, null, failed };

  template <class X>
  Outcome stage(int number, Strided<X> from) {
    multiply_long(d, d, n, from, from.transposed(), Into{r.data, ld, 1.0, false, true}, threads);
    if (number == 0)
      for (int64_t i = 0; i < d; ++i) squared_norm += r.data[i * ld + i];
    const double largest = largest_eigenvalue(r, d, probe, vectors, threads), bound = 1.01 * largest;
    if (!(bound > 0)) return failed;
    scale[number] = sqrt(bound);
    for_each(d, threads, [&](int64_t i) {
      for (int64_t j = 0; j < d; ++j) r.data[i * ld + j] *= 1 / bound;
    });

    const Rational first = zolotarev(kSmallest, kFirstPoles);
    applied[number] = first;
    if (!invert(first, 0)) return failed;
    const double smallest =
        sqrt(fmax(1 / largest_eigenvalue(square[0], d, probe, vectors, threads) - first.pole[0], 0.0));
    combine(first, 0, true);
    const bool resolved = smallest >= kResolved;
    const double share = sqrt(1.01) * original(smallest, number);  // from above, since Lanczos' estimate is from below
    if (share <= kMargin * rtol) return null;
    if (!resolved) {
      multiply(d, n, d, square[0], from, Into{x, n, 1 / scale[number]}, threads);
      return go_on;
    }
    condition = fmax(1 / share, 1.0);

    const double l = fmin(first.of(0.9 * smallest), first.of(kSmallest));
    Rational second = zolotarev(l, 1);
    for (int count = 2; (1 - second.of(l)) / 2 > kDeviation && count <= kMostPoles; ++count)
      second = zolotarev(l, count);
    second.scale *= 2 / (1 + second.of(l));
    multiply(d, d, d, square[1], square[0], Into{r.data, ld, 1.0, false, true}, threads);
    if (!invert(second, 1)) return failed;
    combine(second, 1, false);
    // The product is symmetric in exact arithmetic. For float32 one triangle and its mirror image are enough: the
    // mirror image has an error of eps / l^2, instead of eps / l.
    multiply(d, d, d, square[1], square[0], Into{r.data, ld, 1 / scale[number], false, sizeof(S) == 4}, threads);
    if constexpr (sizeof(S) == 4) {
      finish(r, from);
    } else {  // a Newton-Schulz step squares the error of orthogonality
      multiply(d, n, d, r, from, Into{x, n}, threads);
      const Matrix now{x, n, 1};
      multiply_long(d, d, n, now, now.transposed(), Into{r.data, ld, -0.5, false, true}, threads);
      for (int64_t i = 0; i < d; ++i) r.data[i * ld + i] += 1.5;
      finish(r, now);
    }
    return done;
  }

  Outcome iterate() {
    Outcome outcome = stage(0, m);
    for (int number = 1; outcome == go_on && number < kMostStages; ++number) outcome = stage(number, Matrix{x, n, 1});
    return outcome == go_on ? null : outcome;
  }

  // Estimates the residual |M - H A|_F / |M|_F, where H = sym(M A^T), and the error of orthogonality |A A^T - 1|_F /
  // sqrt d, from products with kProbes Gaussian rows.
  void certify(double& residual, double& orthogonality) {
    const Strided<const S> a = tall ? Strided<const S>{out, 1, d} : Strided<const S>{out, n, 1};
    const Matrix rows{probe, d, 1};
    double *wm = long_rows, *wa = wm + kProbes * n, *wha = wa + kProbes * n;
    double *wh = short_rows, *waa = wh + kProbes * d;
    multiply(kProbes, n, d, rows, m, Into{wm, n}, threads);
    multiply(kProbes, n, d, rows, a, Into{wa, n}, threads);
    multiply_long(kProbes, d, n, Matrix{wm, n, 1}, a.transposed(), Into{wh, d, 0.5}, threads);
    multiply_long(kProbes, d, n, Matrix{wa, n, 1}, m.transposed(), Into{wh, d, 0.5, true}, threads);
    multiply_long(kProbes, d, n, Matrix{wa, n, 1}, a.transposed(), Into{waa, d}, threads);
    multiply(kProbes, n, d, Matrix{wh, d, 1}, a, Into{wha, n}, threads);
    residual = sqrt(squared_distance(wm, wha, kProbes * n) / kProbes / squared_norm);
    orthogonality = sqrt(squared_distance(waa, probe, kProbes * d) / static_cast<double>(kProbes * d));
  }

  static double squared_distance(const double* a, const double* b, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
  }

  // tr(A M^T)
  double nuclear_norm() const {
    const Strided<const S> along = tall ? m.transposed() : m;
    const int64_t rows = tall ? n : d, cols = tall ? d : n;
    constexpr int W = kWidth<double>;
    for_each(rows, threads, [&](int64_t i) {
      const S *a = out + i * cols, *b = along.from(i, 0).data;
      Full<double> lanes = {};
      int64_t j = 0;
      if (along.s_col == 1)
        for (; j + W <= cols; j += W) lanes = fma(load_as<double, W>(a + j), load_as<double, W>(b + j), lanes);
      double sum = 0;
      for (int l = 0; l < W; ++l) sum += lanes[l];
      for (; j < cols; ++j) sum += static_cast<double>(a[j]) * b[j * along.s_col];
      long_rows[i] = sum;
    });
    double sum = 0;
    for (int64_t i = 0; i < rows; ++i) sum += long_rows[i];
    return sum;
  }
};

}  // namespace

void polar(void* out, double* statistics, const void* m, DType dtype, int64_t batch, int64_t rows, int64_t cols,
           int64_t s_batch, int64_t s_row, int64_t s_col, double rtol, int threads) {
  const bool tall = rows > cols;
  const int64_t d = tall ? cols : rows, n = tall ? rows : cols;
  constexpr int64_t worth_threads = 1 << 25;  // flops
  const int together = batch >= threads ? threads : 1,
            each = together > 1 || d * d * (3 * n + 8 * d) < worth_threads ? 1 : threads;
  const int64_t size = Work::size(d, n);
  const Scratch memory(together * size * 8);
  with_type(dtype, [&]<class S>(Type<S>) {
    if constexpr (sizeof(S) >= 4) {
      const auto one = [&](int64_t b) {
        const Work work{static_cast<double*>(memory.data()) + omp_get_thread_num() * size};
        const Strided<const S> from{static_cast<const S*>(m) + b * s_batch, tall ? s_col : s_row, tall ? s_row : s_col};
        Polar<S> polar(d, n, from, static_cast<S*>(out) + b * d * n, tall, rtol, work, each);
        double* to = statistics + 6 * b;
        const auto outcome = polar.iterate();
        to[5] = static_cast<double>(outcome);
        for (int i = 0; i < 5; ++i) to[i] = __builtin_nan("");
        if (outcome != Polar<S>::done) return;
        to[0] = polar.nuclear_norm();
        to[1] = static_cast<double>(d);
        to[2] = polar.condition;
        polar.certify(to[3], to[4]);
      };
      if (together == 1) {  // even a region of one thread makes new threads for each region inside
        for (int64_t b = 0; b < batch; ++b) one(b);
        return;
      }
      OutOfMemory missing;
#pragma omp parallel for num_threads(together) schedule(dynamic)
      for (int64_t b = 0; b < batch; ++b) missing.run([&] { one(b); });
      missing.rethrow();
    }
  });
}

}  // namespace rf::RF_ISA
