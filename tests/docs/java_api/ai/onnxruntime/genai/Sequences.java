// Names of onnxruntime-genai's Java interface that docs/android.md uses: nothing runs.
package ai.onnxruntime.genai;

public final class Sequences implements AutoCloseable {
  public int[] getSequence(long sequenceIndex) {
    return null;
  }

  @Override
  public void close() {}
}
