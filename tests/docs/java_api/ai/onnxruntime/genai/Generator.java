// Names of onnxruntime-genai's Java interface that docs/android.md uses: nothing runs.
package ai.onnxruntime.genai;

public final class Generator implements AutoCloseable {
  public Generator(Model model, GeneratorParams generatorParams) throws GenAIException {}

  public boolean isDone() {
    return true;
  }

  public void appendTokenSequences(Sequences sequences) throws GenAIException {}

  public long tokenCount() throws GenAIException {
    return 0;
  }

  public void rewindTo(long newLength) throws GenAIException {}

  public void generateNextToken() throws GenAIException {}

  public int getLastTokenInSequence(long sequenceIndex) throws GenAIException {
    return 0;
  }

  @Override
  public void close() {}
}
